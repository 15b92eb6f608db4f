//! The state table.

use erhu_planes::timeouts::TimeoutKey;

/// State of a connection. The numbers are those of `erhu_planes::connections::TCP_STATES` and of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// No packet was seen.
    None,
    /// The opener's SYN was seen.
    SynSent,
    /// The SYN/ACK was seen.
    SynRecv,
    /// The handshake is over, or the connection was picked up.
    Established,
    /// The first FIN was seen.
    FinWait,
    /// That FIN was acknowledged.
    CloseWait,
    /// The second FIN was seen.
    LastAck,
    /// Both FINs are acknowledged.
    TimeWait,
    /// A RST was seen.
    Close,
    /// Both sides sent a SYN.
    SynSent2,
}

impl TcpState {
    /// All states in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::None,
        Self::SynSent,
        Self::SynRecv,
        Self::Established,
        Self::FinWait,
        Self::CloseWait,
        Self::LastAck,
        Self::TimeWait,
        Self::Close,
        Self::SynSent2,
    ];

    /// The state with a number; [`TcpState::None`] for a number that is none.
    #[inline]
    pub fn from_u8(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::None)
    }

    /// Whether one side at least has said that it is over: from here on a reset is believed as it is.
    pub(super) const fn is_closing(self) -> bool {
        matches!(self, Self::FinWait | Self::CloseWait | Self::LastAck | Self::TimeWait | Self::Close)
    }

    /// The state's own timeout.
    #[inline]
    pub(super) const fn timeout(self) -> TimeoutKey {
        const KEYS: [TimeoutKey; 10] = [
            TimeoutKey::TcpSynSent,
            TimeoutKey::TcpSynSent,
            TimeoutKey::TcpSynRecv,
            TimeoutKey::TcpEstablished,
            TimeoutKey::TcpFinWait,
            TimeoutKey::TcpCloseWait,
            TimeoutKey::TcpLastAck,
            TimeoutKey::TcpTimeWait,
            TimeoutKey::TcpClose,
            TimeoutKey::TcpSynSent2,
        ];
        KEYS[self as usize]
    }
}

/// What the table says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// The state after it.
    To(TcpState),
    /// It passes and changes nothing.
    Ignore,
    /// It is INVALID.
    Invalid,
}

const SS: Cell = Cell::To(TcpState::SynSent);
const SR: Cell = Cell::To(TcpState::SynRecv);
const ES: Cell = Cell::To(TcpState::Established);
const FW: Cell = Cell::To(TcpState::FinWait);
const CW: Cell = Cell::To(TcpState::CloseWait);
const LA: Cell = Cell::To(TcpState::LastAck);
const TW: Cell = Cell::To(TcpState::TimeWait);
const CL: Cell = Cell::To(TcpState::Close);
const S2: Cell = Cell::To(TcpState::SynSent2);
const IG: Cell = Cell::Ignore;
const IV: Cell = Cell::Invalid;

/// `STEPS[direction][class][state]`: the kernel's table. Odd cells, carried out by `step`:
/// SS in the columns TW and CL means "may reopen".
/// TW from LA by an ACK is not believed if that ACK answers a SYN which we let through (RFC 5961 section 4).
/// SR by a reply ACK becomes ES after a simultaneous open.
/// CL by a RST only as far as the RST is believed (see [`super::reset`]).
#[rustfmt::skip]
pub(super) const STEPS: [[[Cell; 10]; 6]; 2] = [
    [ // Original   NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
      /* SYN     */ [SS, SS, IG, IG, IG, IG, IG, SS, SS, S2],
      /* SYN/ACK */ [IV, IV, SR, IV, IV, IV, IV, IV, IV, SR],
      /* FIN     */ [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
      /* ACK     */ [ES, IV, ES, ES, CW, CW, TW, TW, CL, IV],
      /* RST     */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
      /* none    */ [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV] ],
    [ // Reply      NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
      /* SYN     */ [IV, S2, IV, IV, IV, IV, IV, SS, IV, S2],
      /* SYN/ACK */ [IV, SR, IG, IG, IG, IG, IG, IG, IG, SR],
      /* FIN     */ [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
      /* ACK     */ [IV, IG, SR, ES, CW, CW, TW, TW, CL, IG],
      /* RST     */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
      /* none    */ [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV] ],
];

/// `ONE_SIDED[class][state]`: where one direction may never be seen, any packet is believed about its own side.
#[rustfmt::skip]
pub(super) const ONE_SIDED: [[Cell; 10]; 6] = [
      //            NO  SS  SR  ES  FW  CW  LA  TW  CL  S2
      /* SYN     */ [SS, SS, IG, IG, IG, IG, IG, SS, SS, SS],
      /* SYN/ACK */ [SR, SR, SR, IG, IG, IG, IG, IG, IG, SR],
      /* FIN     */ [FW, FW, FW, FW, LA, LA, LA, TW, CL, FW],
      /* ACK     */ [ES, ES, ES, ES, CW, CW, TW, TW, CL, ES],
      /* RST     */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
      /* none    */ [IV, IV, IV, IV, IV, IV, IV, IV, IV, IV],
];
