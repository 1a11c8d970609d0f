//! Cases about lifecycle.

use crate::cases;

cases![];
