//! Timeout policies as ticks.

use erhu_planes::TICKS_PER_SECOND;
use erhu_planes::program::Program;
use erhu_planes::timeouts::{TimeoutKey, UdpRefresh};

/// One timeout policy, every key filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    ticks: [u32; TimeoutKey::COUNT],
    udp_refresh: UdpRefresh,
}

impl Timeouts {
    /// The policies of a program in its order. Keys that a policy leaves out come from the first policy (`default`),
    /// and there from the kernel's defaults.
    pub fn compile_all(program: &Program) -> Vec<Self> {
        let mut base = Self::default();
        let mut all = Vec::with_capacity(program.timeouts.len());
        for policy in &program.timeouts {
            let mut timeouts = base.clone();
            for (key, milliseconds) in &policy.values {
                timeouts.ticks[*key as usize] = ticks(*milliseconds);
            }
            timeouts.udp_refresh = policy.udp_refresh.unwrap_or(timeouts.udp_refresh);
            if all.is_empty() {
                base = timeouts.clone();
            }
            all.push(timeouts);
        }
        all
    }

    /// A timeout in ticks, at least 1.
    #[inline]
    pub const fn get(&self, key: TimeoutKey) -> u32 {
        self.ticks[key as usize]
    }

    /// Whether packets of a UDP flow that was never answered extend it.
    pub const fn udp_refresh(&self) -> UdpRefresh {
        self.udp_refresh
    }
}

impl Default for Timeouts {
    /// The kernel's.
    fn default() -> Self {
        let mut ticks = [0; TimeoutKey::COUNT];
        for key in TimeoutKey::ALL {
            ticks[*key as usize] = key.default_seconds().saturating_mul(TICKS_PER_SECOND);
        }
        Self { ticks, udp_refresh: UdpRefresh::Any }
    }
}

/// Milliseconds as ticks, rounded up so that a timeout never fires early.
fn ticks(milliseconds: u64) -> u32 {
    let ticks = milliseconds.saturating_mul(u64::from(TICKS_PER_SECOND)).div_ceil(1000);
    u32::try_from(ticks).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use erhu_planes::program::TimeoutPolicy;

    #[test]
    fn defaults_are_the_kernels() {
        let timeouts = &Timeouts::compile_all(&Program::empty())[0];
        assert_eq!(timeouts, &Timeouts::default());
        assert_eq!(timeouts.get(TimeoutKey::TcpEstablished), 432_000 * 16);
        assert_eq!(timeouts.get(TimeoutKey::TcpClose), 160);
        assert_eq!(timeouts.udp_refresh(), UdpRefresh::Any);
    }

    #[test]
    fn policies_inherit_from_default_and_not_from_each_other() {
        let policy = |name: &str, values: &[(TimeoutKey, u64)], udp_refresh| TimeoutPolicy {
            name: name.into(),
            values: values.to_vec(),
            udp_refresh,
        };
        let mut program = Program::empty();
        program.timeouts = vec![
            policy("default", &[(TimeoutKey::Udp, 10_000)], Some(UdpRefresh::Replied)),
            policy("a", &[(TimeoutKey::UdpStream, 1)], Some(UdpRefresh::Any)),
            policy("b", &[(TimeoutKey::Icmp, 62_501)], None),
        ];
        let all = Timeouts::compile_all(&program);
        let row = |t: &Timeouts| [TimeoutKey::Udp, TimeoutKey::UdpStream, TimeoutKey::Icmp].map(|k| t.get(k));
        assert_eq!(row(&all[0]), [160, 1920, 480]);
        assert_eq!(row(&all[1]), [160, 1, 480]);
        assert_eq!(row(&all[2]), [160, 1920, 1001]);
        let refresh: Vec<_> = all.iter().map(Timeouts::udp_refresh).collect();
        assert_eq!(refresh, [UdpRefresh::Replied, UdpRefresh::Any, UdpRefresh::Replied]);
    }

    #[test]
    fn milliseconds_round_up_to_ticks_and_the_longest_fits() {
        assert_eq!([1, 62, 63, 125, 126, 500].map(ticks), [1, 1, 2, 2, 3, 8]);
        assert_eq!(ticks(erhu_planes::program::limits::TIMEOUT_MS), 138_240_000);
    }
}
