//! What the kernel tells about changes of nftables, by netlink: who touched our table, and when.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with, sockopt};
use tokio::io::unix::AsyncFd;

use super::error::NetworkError;
use crate::system_calls::waited_for;

/// `NFNLGRP_NFTABLES` is group 7.
const GROUP_NFTABLES: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWTABLE`.
const NEW_TABLE: u8 = 0;
/// `NFT_MSG_NEWGEN`: the end of each transaction.
const NEW_GENERATION: u8 = 15;
/// In every message of a table, chain, rule, set, element or object, attribute 1 is the table's name.
const ATTRIBUTE_TABLE: u16 = 1;
/// `NFPROTO_INET`.
const FAMILY_INET: u8 = 1;

const MESSAGE_HEADER_BYTES: usize = 16;
const FAMILY_HEADER_BYTES: usize = 4;
/// A flood of others' changes must not make us miss one of ours.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// One committed change of the ruleset, or the loss of some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Our table is not concerned.
    Elsewhere,
    /// Our table was changed or removed.
    Touched,
    /// Our table was made, whatever was there before.
    Made,
    /// More happened than the kernel could tell.
    Unknown,
}

/// A subscription, of the network namespace it was made in.
pub(super) struct NftEvents {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
    parser: Parser,
}

impl NftEvents {
    /// From now on nothing is missed without an [`Change::Unknown`].
    pub(super) fn subscribe() -> Result<Self, NetworkError> {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
            // Beyond the limit for others, which only root may do; less is no reason to go without.
            if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).is_err() {
                sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)?;
            }
            bind(&socket, &SocketAddrNetlink::new(0, GROUP_NFTABLES))?;
            waited_for(socket)
        };
        Ok(Self {
            socket: open().map_err(NetworkError::other("subscribing to the events of nftables"))?,
            buffer: vec![0; 1 << 18],
            parser: Parser::default(),
        })
    }

    /// Waits until there is something, and gives all there is. Nothing is lost when the wait is dropped.
    pub(super) async fn next(&mut self, table: &str) -> Result<Vec<Change>, NetworkError> {
        loop {
            let mut ready = self
                .socket
                .readable()
                .await
                .map_err(NetworkError::other("waiting for the events of nftables"))?;
            ready.clear_ready();
            let changes = self.drain(table)?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// What has happened so far, without waiting.
    pub(super) fn drain(&mut self, table: &str) -> Result<Vec<Change>, NetworkError> {
        let mut changes = Vec::new();
        loop {
            match recv(self.socket.get_ref(), &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => self.parser.read(&self.buffer[..length], table, &mut changes),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(changes),
                Err(Errno::NOBUFS) => {
                    self.parser = Parser::default();
                    changes.push(Change::Unknown);
                }
                Err(error) => return Err(NetworkError::other("reading the events of nftables")(error)),
            }
        }
    }
}

/// Collects the messages of one transaction.
#[derive(Debug, Default)]
struct Parser {
    touched: bool,
    made: bool,
}

impl Parser {
    fn read(&mut self, mut datagram: &[u8], table: &str, changes: &mut Vec<Change>) {
        while let Some(length) = u32_at(datagram, 0).map(|length| length as usize) {
            if length < MESSAGE_HEADER_BYTES || length > datagram.len() {
                changes.push(Change::Unknown);
                return;
            }
            self.read_message(&datagram[..length], table, changes);
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    fn read_message(&mut self, message: &[u8], table: &str, changes: &mut Vec<Change>) {
        let (kind, subsystem) = (message[4], message[5]);
        if subsystem != SUBSYSTEM {
            return;
        }
        if kind == NEW_GENERATION {
            let change = match (self.made, self.touched) {
                (true, _) => Change::Made,
                (false, true) => Change::Touched,
                (false, false) => Change::Elsewhere,
            };
            changes.push(change);
            *self = Self::default();
            return;
        }
        let family = message.get(MESSAGE_HEADER_BYTES).copied();
        let attributes = message
            .get(MESSAGE_HEADER_BYTES + FAMILY_HEADER_BYTES..)
            .unwrap_or_default();
        if family == Some(FAMILY_INET) && table_of(attributes) == Some(table.as_bytes()) {
            self.touched = true;
            self.made |= kind == NEW_TABLE;
        }
    }
}

fn table_of(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)?;
        let value = attributes.get(4..length)?;
        if kind & 0x3fff == ATTRIBUTE_TABLE {
            return Some(value.strip_suffix(&[0]).unwrap_or(value));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, family: u8, table: &str) -> Vec<u8> {
        let mut attribute = ((4 + table.len() + 1) as u16).to_ne_bytes().to_vec();
        attribute.extend(ATTRIBUTE_TABLE.to_ne_bytes());
        attribute.extend(table.as_bytes());
        attribute.push(0);
        attribute.resize(attribute.len().next_multiple_of(4), 0);
        let length = (MESSAGE_HEADER_BYTES + FAMILY_HEADER_BYTES + attribute.len()) as u32;
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([kind, SUBSYSTEM, 0, 0]);
        bytes.extend([0; 8]);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attribute);
        bytes
    }

    fn changes(messages: &[Vec<u8>]) -> Vec<Change> {
        let mut found = Vec::new();
        Parser::default().read(&messages.concat(), "skep", &mut found);
        found
    }

    #[test]
    fn a_transaction_ends_with_its_generation() {
        let delete_table = 2;
        let end = message(NEW_GENERATION, 0, "");
        assert_eq!(changes(&[message(delete_table, FAMILY_INET, "skep")]), []);
        assert_eq!(
            changes(&[
                message(delete_table, FAMILY_INET, "skep"),
                end.clone(),
                message(delete_table, FAMILY_INET, "other"),
                end.clone(),
                message(delete_table, FAMILY_INET, "skep"),
                message(NEW_TABLE, FAMILY_INET, "skep"),
                end.clone(),
                message(delete_table, 2, "skep"),
                end,
            ]),
            [Change::Touched, Change::Elsewhere, Change::Made, Change::Elsewhere]
        );
    }

    #[test]
    fn a_broken_datagram_is_not_taken_for_nothing() {
        let mut broken = message(2, FAMILY_INET, "skep");
        broken[0] = 7;
        assert_eq!(changes(&[broken]), [Change::Unknown]);
    }
}
