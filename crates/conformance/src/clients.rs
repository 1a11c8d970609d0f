//! Cases about clients.

use crate::cases;

cases![];
