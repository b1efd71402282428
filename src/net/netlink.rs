//! The kernel's links, addresses and routes, over rtnetlink: one call, one answer.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use rtnetlink::{Error, Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// A connection to the kernel, in the network namespace of the thread that opened it. It serves one job of one
/// thread and is not kept: the crate ends a connection for good when it does not understand an answer, which a
/// newer kernel may give, and the calls that wait on it then look as if they had succeeded. [`Netlink::wait`] sees
/// that, and the next job is not concerned.
#[derive(Debug)]
pub(super) struct Netlink {
    runtime: Runtime,
    handle: Handle,
    connection: JoinHandle<()>,
}

/// `ffff:`, the place at an interface where filters hang.
const CLSACT: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// An interface, as far as this room looks at it.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    pub kind: Option<InfoKind>,
    pub up: bool,
    pub mtu: Option<u32>,
    /// Its Ethernet address; empty where it has none.
    pub mac: Vec<u8>,
    /// What somebody has noted about it.
    pub alias: String,
    /// Index of the bridge or bond it is part of.
    pub master: Option<u32>,
    /// A bridge that holds back new ports.
    pub slow: bool,
    /// A bridge's port whose frames are forwarded.
    pub forwarding: bool,
}

impl Netlink {
    /// Connects, in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (connection, handle, _) = {
            let _inside = runtime.enter();
            rtnetlink::new_connection()?
        };
        let connection = runtime.spawn(connection);
        Ok(Self {
            runtime,
            handle,
            connection,
        })
    }

    /// The interface of this name, if there is one.
    pub fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match self.wait(found.try_next()) {
            Ok(Some(message)) => Ok(Some(message.into())),
            Ok(None) => Err(no_answer()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All interfaces of one kind. The kernel chooses: of other kinds we might not understand all it says.
    pub fn links(&self, kind: InfoKind) -> io::Result<Vec<Link>> {
        let mut all = self.handle.link().get();
        let filter = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
        all.message_mut().attributes.push(filter);
        self.wait(all.execute().map_ok(Link::from).try_collect())
    }

    /// Makes an interface; one of the same name must not exist.
    pub fn add(&self, message: LinkMessage) -> io::Result<()> {
        self.wait(self.handle.link().add(message).execute())
    }

    /// Changes an existing interface.
    pub fn change(&self, message: LinkMessage) -> io::Result<()> {
        self.wait(self.handle.link().set(message).execute())
    }

    /// Removes an interface.
    pub fn delete(&self, index: u32) -> io::Result<()> {
        self.wait(self.handle.link().del(index).execute())
    }

    /// The addresses of an interface.
    pub fn addresses(&self, index: u32) -> io::Result<Vec<IpAddr>> {
        let request = self.handle.address().get().set_link_index_filter(index);
        self.collect_addresses(request)
    }

    /// The addresses of all interfaces.
    pub fn all_addresses(&self) -> io::Result<Vec<IpAddr>> {
        self.collect_addresses(self.handle.address().get())
    }

    /// Gives an interface an address; one that it has already is no error.
    pub fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let address = IpAddr::V4(address);
        let request = self.handle.address().add(index, address, prefix);
        self.wait(request.replace().execute())
    }

    /// What the kernel says of an interface's addresses, in its order.
    pub fn address_messages(&self, index: u32) -> io::Result<Vec<AddressMessage>> {
        let request = self.handle.address().get().set_link_index_filter(index);
        self.wait(request.execute().try_collect())
    }

    /// Gives an interface an address, in the kernel's words; one that it has already is no error.
    pub fn add_address_as(&self, message: AddressMessage) -> io::Result<()> {
        let (index, nobody) = (message.header.index, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut request = self.handle.address().add(index, nobody, 0).replace();
        *request.message_mut() = message;
        self.wait(request.execute())
    }

    /// Sends what leaves the network to `gateway`.
    pub fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();
        self.wait(self.handle.route().add(route).execute())
    }

    /// The IPv4 neighbours whose Ethernet address an interface knows.
    pub fn neighbours(&self, index: u32) -> io::Result<Vec<(Ipv4Addr, [u8; 6])>> {
        let known = self.handle.neighbours().get().execute();
        let all: Vec<NeighbourMessage> = self.wait(known.try_collect())?;
        let here = all
            .into_iter()
            .filter(|entry| entry.header.ifindex == index);
        Ok(here.filter_map(|entry| neighbour(&entry)).collect())
    }

    /// Lets an interface know a neighbour's Ethernet address, to be checked when it has been used for a while.
    pub fn add_neighbour(&self, index: u32, address: Ipv4Addr, mac: &[u8]) -> io::Result<()> {
        let entry = self.handle.neighbours().add(index, IpAddr::V4(address));
        let entry = entry.link_layer_address(mac).state(NeighbourState::Stale);
        self.wait(entry.replace().execute())
    }

    /// From now on the bridge sends frames for `mac` to its port `index`, until it sees one from there elsewhere.
    pub fn claim_mac(&self, index: u32, mac: &[u8]) -> io::Result<()> {
        let entry = self.handle.neighbours().add_bridge(index, mac);
        let entry = entry.flags(NeighbourFlags::Controller);
        self.wait(entry.state(NeighbourState::Noarp).replace().execute())
    }

    /// Lets a BPF program judge every frame that comes in at an interface. Interface and filter end together.
    pub fn filter(&self, index: u32, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let index = index.cast_signed();
        let mut discipline = TcMessage::with_index(index);
        discipline.header.handle = CLSACT;
        discipline.header.parent = TcHandle::CLSACT;
        discipline
            .attributes
            .push(TcAttribute::Kind("clsact".to_owned()));
        self.request(RouteNetlinkMessage::NewQueueDiscipline(discipline))?;

        let mut filter = TcMessage::with_index(index);
        filter.header.parent = TcHandle {
            major: CLSACT.major,
            minor: TcHandle::MIN_INGRESS,
        };
        filter.header.info = u32::from(TcHandle {
            major: 1, // the first
            minor: (libc::ETH_P_ALL as u16).to_be(),
        });
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        filter.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).to_vec()),
        ];
        self.request(RouteNetlinkMessage::NewTrafficFilter(filter))
    }

    /// Has something made that must not be there yet.
    fn request(&self, message: RouteNetlinkMessage) -> io::Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut handle = self.handle.clone();
        self.wait(async {
            let mut answers = handle.request(message)?;
            while let Some(answer) = answers.next().await {
                if let NetlinkPayload::Error(error) = answer.payload
                    && error.code.is_some()
                {
                    return Err(Error::NetlinkError(error));
                }
            }
            Ok(())
        })
    }

    fn collect_addresses(&self, request: rtnetlink::AddressGetRequest) -> io::Result<Vec<IpAddr>> {
        let messages: Vec<_> = self.wait(request.execute().try_collect())?;
        // Of a point-to-point link, `Address` is the other end's and `Local` ours; elsewhere both are ours.
        let own = |attributes: Vec<AddressAttribute>| {
            let mut found = None;
            for attribute in attributes {
                match attribute {
                    AddressAttribute::Local(address) => return Some(address),
                    AddressAttribute::Address(address) => found = Some(address),
                    _ => {}
                }
            }
            found
        };
        Ok(messages
            .into_iter()
            .filter_map(|message| own(message.attributes))
            .collect())
    }

    fn wait<T>(&self, answer: impl Future<Output = Result<T, Error>>) -> io::Result<T> {
        let answer = self.runtime.block_on(answer);
        if self.connection.is_finished() {
            return Err(no_answer());
        }
        answer.map_err(|error| match error {
            Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        })
    }
}

/// Address and Ethernet address of a neighbour that is known.
fn neighbour(entry: &NeighbourMessage) -> Option<(Ipv4Addr, [u8; 6])> {
    let (mut address, mut mac) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => {
                address = Some(*found)
            }
            NeighbourAttribute::LinkLayerAddress(found) => mac = found.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let known = !matches!(
        entry.header.state,
        NeighbourState::Incomplete
            | NeighbourState::Failed
            | NeighbourState::Noarp
            | NeighbourState::None
    );
    Some((address?, mac?)).filter(|_| known)
}

fn no_answer() -> io::Error {
    let text = "the kernel's answer is missing, or not understood";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// A change of the interface of this name.
/// A note at an interface, which `ip link` shows; the kernel takes none while it makes one.
pub(super) fn noted(name: &str, alias: &str) -> LinkMessage {
    let note = LinkAttribute::IfAlias(alias.to_owned());
    named(name).append_extra_attribute(note).build()
}

pub(super) fn named(name: &str) -> LinkMessageBuilder<LinkUnspec> {
    LinkMessageBuilder::<LinkUnspec>::new().name(name)
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = Some(mtu),
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Controller(index) if index > 0 => link.master = Some(index),
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|i| link.learn(i)),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn learn(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind),
            LinkInfo::Data(InfoData::Bridge(settings)) => {
                let spanning = settings.iter().any(|setting| {
                    matches!(setting, InfoBridge::StpState(state) if *state != BridgeStpState::Disabled)
                });
                let delayed = settings
                    .iter()
                    .any(|setting| matches!(setting, InfoBridge::ForwardDelay(1..)));
                self.slow = spanning && delayed;
            }
            LinkInfo::PortData(InfoPortData::BridgePort(settings)) => {
                self.forwarding = settings
                    .iter()
                    .any(|s| matches!(s, InfoBridgePort::State(BridgePortState::Forwarding)));
            }
            _ => {}
        }
    }
}
