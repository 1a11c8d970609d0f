//! Cases about durability.

use crate::cases;

cases![];
