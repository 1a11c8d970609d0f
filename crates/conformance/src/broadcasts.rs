//! Cases about broadcasts.

use crate::cases;

cases![];
