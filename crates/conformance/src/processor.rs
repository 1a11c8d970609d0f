//! Cases about processor.

use crate::cases;

cases![];
