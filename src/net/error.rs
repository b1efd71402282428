//! What can go wrong in this room, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::model::{Mac, Name};

/// Why the network did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A field of [`super::NetworkConfig`] breaks a rule.
    #[error("network.{field}: {value} {rule}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
        /// What it should be.
        rule: &'static str,
    },
    /// The kernel refused a step.
    #[error("cannot {operation} {object}")]
    Kernel {
        /// The step.
        operation: &'static str,
        /// What it was done to.
        object: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },

    /// There is no such network device.
    #[error("there is no network device {name}")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// A device cannot have the name of another one.
    #[error("there is a network device {name} already where it is to be: choose another name")]
    DeviceExists {
        /// The name, or the pattern of which all names are taken.
        name: String,
    },

    /// The configured bridge exists and is an interface of another kind.
    #[error(
        "{bridge} exists and is not a bridge: set network.bridge to a name that is free, or to a bridge"
    )]
    NotABridge {
        /// Its name.
        bridge: String,
    },
    /// The bridge runs the spanning tree protocol and would hold back a new port for seconds.
    #[error(
        "bridge {bridge} makes a new port wait (spanning tree with a forward delay): \
         switch spanning tree off, or set the forward delay to 0"
    )]
    SlowBridge {
        /// Its name.
        bridge: String,
    },
    /// The bridge is gone.
    #[error("bridge {bridge} does not exist any more: restart the daemon to have it made again")]
    NoBridge {
        /// Its name.
        bridge: String,
    },
    /// The bridge was made, could not be equipped, and could not be removed either.
    #[error("bridge {bridge} could not be set up, nor be removed: {failures}")]
    BridgeRemains {
        /// Its name.
        bridge: String,
        /// Why it could not be set up.
        #[source]
        source: Box<NetError>,
        /// Why it is still there.
        failures: Failures,
    },
    /// The configured uplink does not exist.
    #[error("uplink {uplink} does not exist: set network.uplink to an interface of this host")]
    NoUplink {
        /// Its name.
        uplink: String,
    },
    /// The uplink has an address, which would stop to work on the bridge.
    #[error(
        "uplink {uplink} has the address {address}, which would stop to work behind the bridge: \
         use an interface without address, or move the address to the bridge"
    )]
    UplinkHasAddress {
        /// Its name.
        uplink: String,
        /// The address.
        address: String,
    },
    /// The uplink is part of something else already.
    #[error("uplink {uplink} belongs to another bridge or bond: take it out of there first")]
    UplinkElsewhere {
        /// Its name.
        uplink: String,
    },

    /// Something of the port is there already.
    #[error("the network port of {name} exists already ({what}): remove it first")]
    PortExists {
        /// The container.
        name: Name,
        /// What was found.
        what: String,
    },
    /// The container has no port here.
    #[error("{name} has no network port on this host ({port} does not exist)")]
    NoPort {
        /// The container.
        name: Name,
        /// The interface it should have.
        port: String,
    },
    /// The bridge did not begin to forward the port's frames.
    #[error("bridge {bridge} does not forward the frames of {port}: is the other end up?")]
    PortAsleep {
        /// The bridge.
        bridge: String,
        /// The host's end.
        port: String,
    },
    /// The port's filter is not a program.
    #[error("instruction {from} of a port's filter goes nowhere")]
    FilterJump {
        /// The instruction.
        from: usize,
    },
    /// The port cannot have its filter.
    #[error(
        "cannot filter what comes from {port}: the kernel needs CONFIG_BPF_SYSCALL, CONFIG_NET_SCH_INGRESS and \
         CONFIG_NET_CLS_BPF (modules sch_ingress and cls_bpf)"
    )]
    Filter {
        /// The host's end.
        port: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Making a port failed, and so did removing what had been made of it.
    #[error("the network port of {name} could not be made, nor be removed entirely: {failures}")]
    NotUndone {
        /// The container.
        name: Name,
        /// Why it could not be made.
        #[source]
        source: Box<NetError>,
        /// Why something of it remains.
        failures: Failures,
    },
    /// Something of a port could not be removed.
    #[error("the network port of {name} could not be removed entirely: {failures}")]
    Remains {
        /// The container.
        name: Name,
        /// Why something of it remains.
        failures: Failures,
    },

    /// An address outside this host's container network.
    #[error("{address} is outside the container network {network}")]
    OutsideNetwork {
        /// The address.
        address: Ipv4Addr,
        /// The network, `address/prefix`.
        network: String,
    },
    /// An address with a purpose of its own.
    #[error("{address} cannot be a container's: it is the {purpose} of the container network")]
    Reserved {
        /// The address.
        address: Ipv4Addr,
        /// Its purpose.
        purpose: &'static str,
    },
    /// Another container holds the address.
    #[error("{address} is held by the container {holder}")]
    AddressHeld {
        /// The address.
        address: Ipv4Addr,
        /// Who holds it.
        holder: Name,
    },
    /// Another container holds the address, and lives on another host now.
    #[error("{address} is held by the container {holder}, which lives on host {host} now")]
    AddressHeldAway {
        /// The address.
        address: Ipv4Addr,
        /// Who holds it.
        holder: Name,
        /// Where it lives.
        host: Name,
    },
    /// Somebody on the network answers for the address.
    #[error("{address} is in use: somebody on the network answers for it")]
    AddressAnswers {
        /// The address.
        address: Ipv4Addr,
    },
    /// The name has a lease with another address.
    #[error("{name} holds {address} already: delete that container first, or use another name")]
    NameHolds {
        /// The name.
        name: Name,
        /// The address it holds.
        address: Ipv4Addr,
    },
    /// The name belongs to a container that moved to another host.
    #[error(
        "the container {name} lives on host {host} now and keeps its name and address: delete it there first, \
         or use another name"
    )]
    NameMovedAway {
        /// The name.
        name: Name,
        /// Where it lives.
        host: Name,
    },
    /// A name without a lease.
    #[error("{name} has no address on this host")]
    NoLease {
        /// The name.
        name: Name,
    },
    /// A container comes from a network of another shape.
    #[error(
        "the container's network has a prefix of {theirs} bits and this host's has {ours}: both hosts need the \
         same network.subnet and network.prefix"
    )]
    PrefixDiffers {
        /// The prefix it comes with.
        theirs: u8,
        /// The prefix here.
        ours: u8,
    },
    /// An Ethernet address that is not one station's.
    #[error("{mac} is no station's Ethernet address")]
    NotAStation {
        /// The address.
        mac: Mac,
    },
    /// Another container has the same Ethernet address.
    #[error("the Ethernet address {mac} is held by the container {holder}")]
    MacHeld {
        /// The address.
        mac: Mac,
        /// Who holds it.
        holder: Name,
    },
    /// No address is left.
    #[error("no address is free from {first} to {last}: delete containers, or widen network.pool")]
    PoolExhausted {
        /// The pool's first address.
        first: Ipv4Addr,
        /// The pool's last address.
        last: Ipv4Addr,
    },
    /// The file of leases cannot be read, written or understood.
    #[error("cannot {operation} the leases in {}", file.display())]
    LeaseFile {
        /// The step.
        operation: &'static str,
        /// The file.
        file: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl NetError {
    /// For `map_err`: names the step and its object, keeps what the kernel said.
    pub(super) fn kernel(
        operation: &'static str,
        object: impl fmt::Display,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel {
            operation,
            object: object.to_string(),
            source,
        }
    }
}

/// Everything that failed in a clean-up: it does as much as it can and hides nothing.
#[derive(Debug, Default)]
pub struct Failures(pub Vec<NetError>);

impl Failures {
    /// Keeps the failure, if it is one.
    pub(super) fn note(&mut self, result: Result<(), NetError>) {
        self.0.extend(result.err());
    }
}

impl fmt::Display for Failures {
    /// Every failure with its causes, separated by semicolons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, failure) in self.0.iter().enumerate() {
            if number > 0 {
                write!(f, "; ")?;
            }
            write!(f, "{failure}")?;
            let mut cause = failure.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}
