//! Timeout names and their default values (SEMANTICS 2.1: those of the kernel).

use serde::{Deserialize, Serialize};

macro_rules! timeout_keys {
    ($($variant:ident = $name:literal : $seconds:literal),+ $(,)?) => {
        /// One timeout of a policy.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "each is the state or protocol it names")]
        pub enum TimeoutKey { $($variant),+ }

        impl TimeoutKey {
            /// Every key, in index order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in scripts.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// The kernel's default in seconds.
            pub const fn default_seconds(self) -> u32 {
                match self { $(Self::$variant => $seconds),+ }
            }
        }
    };
}

timeout_keys! {
    TcpSynSent = "tcp_syn_sent": 120,
    TcpSynRecv = "tcp_syn_recv": 60,
    TcpEstablished = "tcp_established": 432_000,
    TcpFinWait = "tcp_fin_wait": 120,
    TcpCloseWait = "tcp_close_wait": 60,
    TcpLastAck = "tcp_last_ack": 30,
    TcpTimeWait = "tcp_time_wait": 120,
    TcpClose = "tcp_close": 10,
    TcpSynSent2 = "tcp_syn_sent2": 120,
    TcpMaxRetrans = "tcp_max_retrans": 300,
    TcpUnacknowledged = "tcp_unacknowledged": 300,
    Udp = "udp": 30,
    UdpStream = "udp_stream": 120,
    Icmp = "icmp": 30,
    Icmpv6 = "icmpv6": 30,
    Gre = "gre": 30,
    GreStream = "gre_stream": 180,
    Generic = "generic": 600,
    FragmentV4 = "fragment_v4": 30,
    FragmentV6 = "fragment_v6": 60,
}

/// Whether packets of a UDP flow that was never answered extend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum UdpRefresh {
    /// They do, as in the kernel.
    #[default]
    Any,
    /// They do not.
    Replied,
}
