//! Bridge, veth, addresses, the network gate, announcements.
