//! Sets of ports.

use std::fmt;

/// Ports that may be reached from outside; none unless set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) tcp: PortSet,
    pub(crate) udp: PortSet,
}

/// A set of ports, asked in constant time.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PortSet(Box<[u64; 1024]>);

impl Default for PortSet {
    fn default() -> Self {
        PortSet(Box::new([0; 1024]))
    }
}

impl PortSet {
    pub(crate) fn insert(&mut self, port: u16) {
        self.0[usize::from(port / 64)] |= 1 << (port % 64);
    }

    pub(crate) fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port / 64)] & (1 << (port % 64)) != 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> {
        (0..=u16::MAX).filter(|port| self.contains(*port))
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Published {
    /// Reads `PORT`, `PORT/tcp` and `PORT/udp`.
    ///
    /// # Errors
    /// The first entry that is none of these.
    pub(crate) fn parse(entries: &[String]) -> Result<Published, &String> {
        let mut published = Published::default();
        for entry in entries {
            let (port, protocol) = entry.split_once('/').unwrap_or((entry, "tcp"));
            let set = match protocol {
                "tcp" => &mut published.tcp,
                "udp" => &mut published.udp,
                _ => return Err(entry),
            };
            set.insert(port.parse().ok().filter(|port| *port != 0).ok_or(entry)?);
        }
        Ok(published)
    }
}
