//! nftables batches: tables, chains, sets and rules in one transaction that takes effect as a whole or not at
//! all. Knows the encoding, not the policy: that is in the `*_rules` modules.

mod expr;
mod socket;

use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hasher};
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{self, Chained, Nfgenmsg, SetElemFlags, SetFlags, TableFlags};
use netlink_socket2::NetlinkSocket;

use super::link::Links;
use super::{Ipv4Range, NetError, NftError};

pub(super) use expr::Expr;
pub(super) use socket::Socket;

/// `NFNL_SUBSYS_NFTABLES`, the subsystem of a batch, `linux/netfilter/nfnetlink.h`.
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_DELTABLE`, as the type of a message.
const TABLE_DELETED: u16 = SUBSYSTEM << 8 | 2;
/// The `nft` program's names of types, kept with a set only so that it can print its elements.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IFNAME: u32 = 41;
const TYPE_INET_PROTO: u32 = 12;
const TYPE_BITS: u32 = 6;
/// `IFNAMSIZ`: interface names are padded to it with zeros.
const IFNAME_LEN: usize = 16;
/// Elements in one message: the length of their list has 16 bits, and each takes 32 bytes. Few messages, since the
/// answers to all of them must find room in the socket.
const KEYS_AT_ONCE: usize = 500;
/// How a comment is kept with a table (libnftnl's `NFTNL_UDATA_TABLE_COMMENT`): type, length, text with NUL.
const COMMENT: u8 = 0;

/// A table's address family, `linux/netfilter.h`.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Family {
    Inet = 1,
    Ipv4 = 2,
    Arp = 3,
    Netdev = 5,
}

/// One of our tables; all have the same name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table(pub(super) Family);

const TABLE: &CStr = c"manta";

/// The step of [`Batch::own_table`], for errors.
pub(super) const OWN_TABLE: &str = "table of one's own";

/// Where a base chain sits, `linux/netfilter.h` and `linux/netfilter_ipv4.h`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    Input,
    Forward,
    Output,
    /// `srcnat`.
    PostroutingNat,
    /// Of the one interface.
    Ingress(&'static str),
}

/// What happens at the end of a base chain.
#[derive(Debug, Clone, Copy)]
pub(super) enum Policy {
    Drop = 0,
    Accept = 1,
}

/// A transaction in the making.
pub(super) struct Batch {
    chained: Chained<'static>,
    /// What each message does, for errors.
    steps: Vec<String>,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self { chained: Chained::new(0), steps: vec!["the batch".to_owned()] };
        batch.chained.request().op_batch_begin_do(&subsystem());
        batch
    }

    /// Creates a table, in place of any with its name.
    pub(super) fn replace_table(&mut self, table: Table, comment: &str) {
        // Creating first what may exist makes deleting it always possible.
        self.new_table(table, "");
        self.delete_table(table);
        self.new_table(table, comment);
    }

    /// Creates a table, unless there is one.
    pub(super) fn new_table(&mut self, table: Table, comment: &str) {
        self.step("table");
        let new = self.chained.request().set_create().op_newtable_do(&table.header());
        let new = new.into_encoder().push_name(TABLE);
        if !comment.is_empty() {
            // `linux/netfilter/nf_tables.h` allows 256 bytes; the callers' comments are far shorter.
            let text = CString::new(comment).unwrap_or_default().into_bytes_with_nul();
            let mut userdata = vec![COMMENT, text.len() as u8];
            userdata.extend(text);
            drop(new.push_userdata(&userdata));
        }
    }

    /// Creates an empty table that only the socket which commits this can change or delete, and that ends with it.
    /// Refused, with `EPERM`, while there is one of another socket. From Linux 5.12 on.
    pub(super) fn own_table(&mut self, table: Table) {
        self.step(OWN_TABLE);
        let new = self.chained.request().set_create().op_newtable_do(&table.header());
        drop(new.into_encoder().push_name(TABLE).push_flags(TableFlags::Owner as u32));
    }

    pub(super) fn delete_table(&mut self, table: Table) {
        self.step("deletion of the table");
        let delete = self.chained.request().op_deltable_do(&table.header());
        drop(delete.into_encoder().push_name(TABLE));
    }

    /// A set of IPv4 ranges.
    pub(super) fn range_set(&mut self, table: Table, name: &str, ranges: &[Ipv4Range]) {
        self.set(table, name, TYPE_IPV4_ADDR, 4, SetFlags::Interval as u32 | SetFlags::Constant as u32);
        let mut keys = Vec::new();
        for range in ranges {
            keys.push((range.first.octets().to_vec(), 0));
            // An interval ends before the next key; one that reaches the last address has no end.
            if let Some(end) = range.last().to_bits().checked_add(1) {
                keys.push((end.to_be_bytes().to_vec(), SetElemFlags::IntervalEnd as u32));
            }
        }
        self.add_keys(table, name, &keys);
    }

    /// A set of protocols above IP, by their numbers.
    pub(super) fn protocol_set(&mut self, table: Table, name: &str, protocols: &[u8]) {
        self.set(table, name, TYPE_INET_PROTO, 1, SetFlags::Constant as u32);
        let keys: Vec<_> = protocols.iter().map(|&protocol| (vec![protocol], 0)).collect();
        self.add_keys(table, name, &keys);
    }

    /// An empty set of pairs of an interface name and an IPv4 address.
    pub(super) fn interface_address_set(&mut self, table: Table, name: &str) {
        let key_type = TYPE_IFNAME << TYPE_BITS | TYPE_IPV4_ADDR;
        self.set(table, name, key_type, IFNAME_LEN + 4, 0);
    }

    pub(super) fn add_interface_addresses(
        &mut self,
        table: Table,
        set: &str,
        pairs: impl Iterator<Item = (String, Ipv4Addr)>,
    ) {
        let keys: Vec<_> = pairs.map(|(name, address)| (interface_address(&name, address), 0)).collect();
        for keys in keys.chunks(KEYS_AT_ONCE) {
            self.add_keys(table, set, keys);
        }
    }

    pub(super) fn delete_interface_address(
        &mut self,
        table: Table,
        set: &str,
        interface: &str,
        address: Ipv4Addr,
    ) {
        self.step(&format!("deletion from set {set}"));
        let delete = self.chained.request().op_delsetelem_do(&table.header());
        let elements =
            delete.into_encoder().push_table(TABLE).push_set_bytes(set.as_bytes()).nested_elements();
        drop(elements.nested_elem().nested_key().push_value(&interface_address(interface, address)));
    }

    /// Deletes all elements of a set.
    pub(super) fn empty_set(&mut self, table: Table, set: &str) {
        self.step(&format!("emptying of set {set}"));
        let delete = self.chained.request().op_delsetelem_do(&table.header());
        // Without a list of them, all are meant.
        drop(delete.into_encoder().push_table(TABLE).push_set_bytes(set.as_bytes()));
    }

    fn set(&mut self, table: Table, name: &str, key_type: u32, key_len: usize, flags: u32) {
        self.step(&format!("set {name}"));
        let id = self.steps.len() as u32;
        let new = self.chained.request().set_create().op_newset_do(&table.header());
        let new = new.into_encoder().push_table(TABLE).push_name_bytes(name.as_bytes()).push_id(id);
        drop(new.push_flags(flags).push_key_type(key_type).push_key_len(key_len as u32));
    }

    fn add_keys(&mut self, table: Table, set: &str, keys: &[(Vec<u8>, u32)]) {
        self.step(&format!("elements of set {set}"));
        let new = self.chained.request().set_create().op_newsetelem_do(&table.header());
        let mut elements =
            new.into_encoder().push_table(TABLE).push_set_bytes(set.as_bytes()).nested_elements();
        for (key, flags) in keys {
            let element = elements.nested_elem().nested_key().push_value(key).end_nested();
            elements = match flags {
                0 => element.end_nested(),
                flags => element.push_flags(&flags.to_be_bytes()).end_nested(),
            };
        }
    }

    /// A chain the kernel runs packets through.
    pub(super) fn base_chain(&mut self, table: Table, name: &str, hook: Hook, policy: Policy) {
        let (kind, number, priority) = match hook {
            Hook::Input => (c"filter", 1, 0),
            Hook::Forward => (c"filter", 2, 0),
            Hook::Output => (c"filter", 3, 0),
            Hook::PostroutingNat => (c"nat", 4, 100),
            Hook::Ingress(_) => (c"filter", 0, 0),
        };
        self.step(&format!("chain {name}"));
        let new = self.chained.request().set_create().op_newchain_do(&table.header());
        let new = new.into_encoder().push_table(TABLE).push_name_bytes(name.as_bytes()).push_type(kind);
        let at = new.push_policy(policy as u32).nested_hook().push_num(number).push_priority(priority);
        if let Hook::Ingress(interface) = hook {
            drop(at.push_dev_bytes(interface.as_bytes()));
        }
    }

    /// A chain that others go to.
    pub(super) fn chain(&mut self, table: Table, name: &str) {
        self.step(&format!("chain {name}"));
        let new = self.chained.request().set_create().op_newchain_do(&table.header());
        drop(new.into_encoder().push_table(TABLE).push_name_bytes(name.as_bytes()));
    }

    /// Appends a rule to a chain.
    pub(super) fn rule(&mut self, table: Table, chain: &str, exprs: &[Expr<'_>]) {
        self.step(&format!("rule in chain {chain}"));
        let new = self.chained.request().set_create().set_append().op_newrule_do(&table.header());
        let new = new.into_encoder().push_table(TABLE).push_chain_bytes(chain.as_bytes());
        let mut list = new.nested_expressions();
        for expr in exprs {
            list = expr.encode(list);
        }
    }

    /// Differs if the batch does, and perhaps with another version of the standard library.
    pub(super) fn hash(self) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(self.chained.finalize().buf());
        hasher.finish()
    }

    /// Puts the batch into force, in the namespace of the socket.
    pub(super) fn commit(mut self, socket: &Socket, action: &'static str) -> Result<(), NetError> {
        self.step("the end of the batch");
        self.chained.request().op_batch_end_do(&subsystem());
        let batch = self.chained.finalize();
        socket.send(batch.buf(), &self.steps).map_err(|source| NetError::Nft { action, source })
    }

    fn step(&mut self, what: &str) {
        self.steps.push(what.to_owned());
    }
}

impl Table {
    fn header(self) -> Nfgenmsg {
        Nfgenmsg { nfgen_family: self.0 as u8, ..Default::default() }
    }

    /// Whether a message of this type, and with this after its header, says that this table was deleted.
    pub(super) fn is_deleted(self, kind: u16, body: &[u8]) -> bool {
        if kind != TABLE_DELETED {
            return false;
        }
        let (header, table) = nftables::OpDeltableDo::decode_request(body);
        header.nfgen_family == self.0 as u8 && table.get_name() == Ok(TABLE)
    }

    /// The comment of this table in the namespace of the calling thread, empty if it has none; `None` if there
    /// is no such table.
    pub(super) fn comment(self) -> Result<Option<String>, NetError> {
        self.comment_by(&mut NetlinkSocket::new())
    }

    /// The same in the namespace that the socket is in.
    pub(super) fn comment_by(self, socket: &mut NetlinkSocket) -> Result<Option<String>, NetError> {
        let action = "read the nftables table";
        let error = |source| NetError::Nft { action, source: NftError::Lookup(source) };
        let mut request = nftables::Request::new().op_gettable_do(&self.header());
        drop(request.encode().push_name(TABLE));
        let mut replies = socket.request(&request).map_err(|source| error(source.into()))?;
        match replies.recv_one() {
            Ok((_, attributes)) => {
                let text = match attributes.get_userdata() {
                    Ok([COMMENT, len, text @ ..]) => text.get(..usize::from(*len)),
                    _ => None,
                };
                let text = text.and_then(|text| CStr::from_bytes_until_nul(text).ok());
                Ok(Some(text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())))
            }
            Err(source) if source.as_io_error().raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(error(source)),
        }
    }
}

/// Changes with each batch that is put into force, in the namespace that `links` is in.
pub(super) fn generation(links: &mut Links) -> Result<u32, NetError> {
    let error =
        |source| NetError::Nft { action: "read the nftables generation", source: NftError::Lookup(source) };
    let request = nftables::Request::new().op_getgen_do(&Nfgenmsg::new());
    let mut replies = links.socket().request(&request).map_err(|source| error(source.into()))?;
    let (_, attributes) = replies.recv_one().map_err(error)?;
    attributes.get_id().map_err(|source| error(source.into()))
}

/// The key of such a set.
fn interface_address(interface: &str, address: Ipv4Addr) -> Vec<u8> {
    let mut key = expr::interface_name(interface);
    key.extend(address.octets());
    key
}

fn subsystem() -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.set_res_id(SUBSYSTEM);
    header
}
