//! What a rule is made of, named as in the `nft` language, and its encoding as register machine expressions.
//! A rule reads as there: what a packet must be, then what becomes of it.

use std::ffi::CStr;
use std::net::Ipv4Addr;

use netlink_bindings::nftables::{
    CmpOps, CtKeys, LookupFlags, MetaKeys, PayloadBase, PushExprListAttrs, Registers, VerdictCode,
};
use netlink_bindings::traits::Pusher;
use netlink_bindings::utils::{finalize_nested_header, push_header, push_nested_header};

use super::IFNAME_LEN;
use crate::net::limits::Bucket;

/// The register that single values pass through.
const REG: u32 = Registers::Reg1 as u32;
/// The one right behind it, for the second part of a concatenation: 16 bytes on, as an interface name is long.
const NEXT_REG: u32 = Registers::Reg2 as u32;
/// `NFPROTO_IPV4`.
const NFPROTO_IPV4: u8 = 2;
/// `NFT_NAT_SNAT`.
const NAT_SNAT: u32 = 0;
/// `linux/netfilter/nf_tables.h`.
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;
const NFTA_CONNLIMIT_COUNT: u16 = 1;
const NFTA_CONNLIMIT_FLAGS: u16 = 2;
/// `NFT_LIMIT_F_INV` and `NFT_CONNLIMIT_F_INV`: matches what exceeds the limit.
const OVER: u32 = 1;
/// `NFT_LIMIT_PKTS` and `NFT_LIMIT_PKT_BYTES`.
const PACKETS: u32 = 0;
const BYTES: u32 = 1;
/// `NF_CT_STATE_BIT` of `IP_CT_ESTABLISHED` and `IP_CT_RELATED`, `linux/netfilter/nf_conntrack_common.h`.
const ESTABLISHED_OR_RELATED: u32 = 1 << 1 | RELATED;
const RELATED: u32 = 1 << 2;
/// That of those that belong to none.
const INVALID: u32 = 1;
/// That of `IP_CT_NEW`.
const NEW: u32 = 1 << 3;
/// `IPS_DST_NAT`, ibid.
const DST_NAT: u32 = 1 << 5;

/// An expression of a rule.
#[derive(Debug, Clone, Copy)]
pub(in crate::net) enum Expr<'a> {
    /// Loads the name of the interface the packet came in by.
    IifName,
    /// Loads the name of the interface it goes out by.
    OifName,
    /// Matches IPv4 packets.
    Ipv4,
    /// Loads the sender's address of an IPv4 packet.
    IpSaddr,
    /// The same behind what is loaded already.
    ThenIpSaddr,
    /// Loads the destination of an IPv4 packet.
    IpDaddr,
    /// Loads this many bytes of the Ethernet header from an offset.
    Ether(u32, u32),
    /// The same of the header behind it, such as ARP.
    Network(u32, u32),
    /// Keeps the bits of this mask, big-endian, of the four bytes loaded.
    Mask(Ipv4Addr),
    /// Matches if what is loaded begins with these bytes.
    Is(&'a [u8]),
    /// Matches if the loaded interface name is this.
    IsName(&'a str),
    /// Matches if what is loaded is in the set.
    In(&'a str),
    /// Matches if it is not.
    NotIn(&'a str),
    /// Matches packets of a connection already seen in both directions, or about one.
    EstablishedOrRelated,
    /// Matches packets of which that is not true.
    NotEstablishedOrRelated,
    /// Matches packets about a connection, such as errors.
    Related,
    /// Matches packets that belong to no connection and begin none.
    Invalid,
    /// Matches packets of a connection that nobody has answered yet.
    New,
    /// Matches packets of which there are too many.
    PacketsOver(Bucket),
    /// Matches packets that are too much, in bytes.
    BytesOver(Bucket),
    /// Matches packets of a connection that is one too many open at once, of those that came by here.
    ConnectionsOver(u32),
    /// Matches packets whose destination was not translated.
    NotDstNat,
    /// Gives the connection this sender's address.
    SnatTo(Ipv4Addr),
    /// Gives it that of the interface it leaves by.
    Masquerade,
    /// Ends the evaluation.
    Accept,
    /// Drops the packet.
    Drop,
    /// Continues in another chain, and does not come back.
    Goto(&'a str),
}

impl Expr<'_> {
    /// Appends it to a rule.
    pub(super) fn encode<P: Pusher>(self, rule: PushExprListAttrs<P>) -> PushExprListAttrs<P> {
        match self {
            Self::IifName => meta(rule, MetaKeys::Iifname),
            Self::OifName => meta(rule, MetaKeys::Oifname),
            Self::Ipv4 => compare(meta(rule, MetaKeys::Nfproto), CmpOps::Eq, &[NFPROTO_IPV4]),
            Self::IpSaddr => payload(rule, PayloadBase::NetworkHeader, 12, 4, REG),
            Self::ThenIpSaddr => payload(rule, PayloadBase::NetworkHeader, 12, 4, NEXT_REG),
            Self::IpDaddr => payload(rule, PayloadBase::NetworkHeader, 16, 4, REG),
            Self::Ether(offset, len) => payload(rule, PayloadBase::LinkLayerHeader, offset, len, REG),
            Self::Network(offset, len) => payload(rule, PayloadBase::NetworkHeader, offset, len, REG),
            Self::Mask(mask) => keep_bits(rule, &mask.octets()),
            Self::Is(bytes) => compare(rule, CmpOps::Eq, bytes),
            Self::IsName(name) => compare(rule, CmpOps::Eq, &interface_name(name)),
            Self::In(set) => lookup(rule, set, 0),
            Self::NotIn(set) => lookup(rule, set, LookupFlags::Invert as u32),
            Self::EstablishedOrRelated => ct_bits(rule, CtKeys::State, ESTABLISHED_OR_RELATED, CmpOps::Neq),
            Self::NotEstablishedOrRelated => ct_bits(rule, CtKeys::State, ESTABLISHED_OR_RELATED, CmpOps::Eq),
            Self::Related => ct_bits(rule, CtKeys::State, RELATED, CmpOps::Neq),
            Self::Invalid => ct_bits(rule, CtKeys::State, INVALID, CmpOps::Neq),
            Self::New => ct_bits(rule, CtKeys::State, NEW, CmpOps::Neq),
            Self::PacketsOver(bucket) => limit(rule, PACKETS, bucket),
            Self::BytesOver(bucket) => limit(rule, BYTES, bucket),
            Self::ConnectionsOver(count) => by_hand(
                rule,
                c"connlimit",
                &[(NFTA_CONNLIMIT_COUNT, &count.to_be_bytes()), (NFTA_CONNLIMIT_FLAGS, &OVER.to_be_bytes())],
            ),
            Self::NotDstNat => ct_bits(rule, CtKeys::Status, DST_NAT, CmpOps::Eq),
            Self::SnatTo(address) => {
                let value = rule.nested_elem().nested_data_immediate().push_dreg(REG).nested_data();
                let rule = value.push_value(&address.octets()).end_nested().end_nested().end_nested();
                let nat = rule.nested_elem().nested_data_nat().push_type(NAT_SNAT);
                nat.push_family(NFPROTO_IPV4.into()).push_reg_addr_min(REG).end_nested().end_nested()
            }
            Self::Masquerade => rule.nested_elem().push_name(c"masq").end_nested(),
            Self::Accept => verdict(rule, VerdictCode::Accept, None),
            Self::Drop => verdict(rule, VerdictCode::Drop, None),
            Self::Goto(chain) => verdict(rule, VerdictCode::Goto, Some(chain)),
        }
    }
}

/// As the kernel compares it: padded to `IFNAMSIZ`.
pub(super) fn interface_name(name: &str) -> Vec<u8> {
    let mut padded = name.as_bytes().to_vec();
    padded.resize(IFNAME_LEN, 0);
    padded
}

fn meta<P: Pusher>(rule: PushExprListAttrs<P>, key: MetaKeys) -> PushExprListAttrs<P> {
    let expr = rule.nested_elem().nested_data_meta().push_dreg(REG).push_key(key as u32);
    expr.end_nested().end_nested()
}

fn payload<P: Pusher>(
    rule: PushExprListAttrs<P>,
    base: PayloadBase,
    offset: u32,
    len: u32,
    register: u32,
) -> PushExprListAttrs<P> {
    let expr = rule.nested_elem().nested_data_payload().push_dreg(register).push_base(base as u32);
    expr.push_offset(offset).push_len(len).end_nested().end_nested()
}

fn compare<P: Pusher>(rule: PushExprListAttrs<P>, op: CmpOps, value: &[u8]) -> PushExprListAttrs<P> {
    let expr = rule.nested_elem().nested_data_cmp().push_sreg(REG).push_op(op as u32);
    expr.nested_data().push_value(value).end_nested().end_nested().end_nested()
}

fn keep_bits<P: Pusher>(rule: PushExprListAttrs<P>, mask: &[u8]) -> PushExprListAttrs<P> {
    let expr = rule.nested_elem().nested_data_bitwise().push_sreg(REG).push_dreg(REG);
    let expr = expr.push_len(mask.len() as u32).nested_mask().push_value(mask).end_nested();
    expr.nested_xor().push_value(&vec![0; mask.len()]).end_nested().end_nested().end_nested()
}

/// By hand: `netlink_bindings` numbers the register attributes of a look-up otherwise than the kernel does.
fn lookup<P: Pusher>(rule: PushExprListAttrs<P>, set: &str, flags: u32) -> PushExprListAttrs<P> {
    let mut expr = rule.nested_elem().nested_data_lookup().push_set_bytes(set.as_bytes());
    for (attribute, value) in [(NFTA_LOOKUP_SREG, REG), (NFTA_LOOKUP_FLAGS, flags)] {
        push_header(expr.as_vec_mut(), attribute, 4);
        expr.as_vec_mut().extend(value.to_be_bytes());
    }
    expr.end_nested().end_nested()
}

fn limit<P: Pusher>(rule: PushExprListAttrs<P>, of: u32, bucket: Bucket) -> PushExprListAttrs<P> {
    let attributes: [(u16, &[u8]); 5] = [
        (NFTA_LIMIT_RATE, &bucket.per_s.to_be_bytes()),
        (NFTA_LIMIT_UNIT, &1u64.to_be_bytes()),
        (NFTA_LIMIT_BURST, &bucket.burst.to_be_bytes()),
        (NFTA_LIMIT_TYPE, &of.to_be_bytes()),
        (NFTA_LIMIT_FLAGS, &OVER.to_be_bytes()),
    ];
    by_hand(rule, c"limit", &attributes)
}

/// An expression that `netlink_bindings` does not know.
fn by_hand<P: Pusher>(
    rule: PushExprListAttrs<P>,
    name: &CStr,
    attributes: &[(u16, &[u8])],
) -> PushExprListAttrs<P> {
    let mut expr = rule.nested_elem().push_name(name);
    let buf = expr.as_vec_mut();
    let data = push_nested_header(buf, NFTA_EXPR_DATA);
    for (kind, value) in attributes {
        push_header(buf, *kind, value.len() as u16);
        buf.extend_from_slice(value);
    }
    finalize_nested_header(buf, data);
    expr.end_nested()
}

/// Matches by whether any of `bits` is set: `Neq` if one must be, `Eq` if none may be.
fn ct_bits<P: Pusher>(
    rule: PushExprListAttrs<P>,
    key: CtKeys,
    bits: u32,
    than_zero: CmpOps,
) -> PushExprListAttrs<P> {
    let expr = rule.nested_elem().nested_data_ct().push_dreg(REG).push_key(key as u32);
    let rule = keep_bits(expr.end_nested().end_nested(), &bits.to_ne_bytes());
    compare(rule, than_zero, &[0; 4])
}

fn verdict<P: Pusher>(
    rule: PushExprListAttrs<P>,
    code: VerdictCode,
    chain: Option<&str>,
) -> PushExprListAttrs<P> {
    let expr = rule.nested_elem().nested_data_immediate().push_dreg(Registers::RegVerdict as u32);
    let mut verdict = expr.nested_data().nested_verdict().push_code(code as u32);
    if let Some(chain) = chain {
        verdict = verdict.push_chain_bytes(chain.as_bytes());
    }
    verdict.end_nested().end_nested().end_nested().end_nested()
}
