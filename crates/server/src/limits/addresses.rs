//! How many connections come from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// The connections of each address. There are as many entries as connections at
/// most; a network of IPv6 (/64) counts as one address, for that is what one
/// machine has.
#[derive(Debug)]
pub(crate) struct Addresses {
    most: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of an address, until it is dropped.
#[derive(Debug)]
pub(crate) struct AddressPlace {
    addresses: Arc<Addresses>,
    key: IpAddr,
}

impl Addresses {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            open: Mutex::default(),
        }
    }

    /// Takes a place for a connection; `None` if the address has too many.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<AddressPlace> {
        let key = key(address);
        let mut open = self.open();
        let count = open.get(&key).copied().unwrap_or(0);
        if count >= self.most {
            return None;
        }
        open.insert(key, count + 1);
        Some(AddressPlace {
            addresses: Arc::clone(self),
            key,
        })
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut open = self.addresses.open();
        match open.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                open.remove(&self.key);
            }
        }
    }
}

fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_has_so_many_places_and_gets_them_back() {
        let addresses = Arc::new(Addresses::new(2));
        let enter = |text: &str| addresses.enter(text.parse().unwrap());
        let places = [enter("192.0.2.1"), enter("::ffff:192.0.2.1")];
        assert!(places.iter().all(Option::is_some));
        assert!(enter("192.0.2.1").is_none(), "however it is written");
        let others = [
            enter("192.0.2.2"),
            enter("2001:db8::1"),
            enter("2001:db8::2"),
        ];
        assert!(others.iter().all(Option::is_some));
        assert!(enter("2001:db8::ffff:0:0:1").is_none(), "the same network");
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(places);
        assert!(enter("192.0.2.1").is_some());
        drop(others);
        assert!(addresses.open().is_empty(), "nothing is kept");
    }
}
