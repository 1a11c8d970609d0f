//! Cases about files.

use crate::cases;

cases![];
