//! When a frame arrives: arithmetic of a star of links, without clock or devices.

/// One-way delay and bandwidth of every link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSpeed {
    /// Time from the last bit sent to the last bit received, in nanoseconds.
    pub delay_ns: u64,
    /// Bits per nanosecond.
    pub gbit: f64,
}

impl LinkSpeed {
    /// Time that `bytes` occupy a link, in nanoseconds.
    fn occupied_ns(self, bytes: usize) -> u64 {
        (bytes as f64 * 8.0 / self.gbit) as u64
    }
}

/// One host's cable: until when each of its directions is busy, and whether it is pulled.
#[derive(Clone, Debug, Default)]
struct Cable {
    up_free_ns: u64,
    down_free_ns: u64,
    cut: bool,
}

/// The cables of all hosts, which meet in one switch that never drops.
#[derive(Debug)]
pub struct Star {
    /// May change at any time; what is under way keeps its time.
    pub speed: LinkSpeed,
    cables: Vec<Cable>,
}

impl Star {
    /// `hosts` cables, all whole.
    pub fn new(hosts: usize, speed: LinkSpeed) -> Star {
        Star { speed, cables: vec![Cable::default(); hosts] }
    }

    /// Number of hosts.
    pub fn hosts(&self) -> usize {
        self.cables.len()
    }

    /// When a frame of `bytes` that `from` sends at `now_ns` has wholly arrived at `to`.
    ///
    /// It occupies the sender's cable, then the receiver's; a frame that finds the second one idle
    /// goes through both at once, as packets of it would. Without cut cables only.
    pub fn arrival_ns(&mut self, now_ns: u64, from: usize, to: usize, bytes: usize) -> u64 {
        let occupied = self.speed.occupied_ns(bytes);
        let up = &mut self.cables[from].up_free_ns;
        let sent = now_ns.max(*up) + occupied;
        *up = sent;
        let down = &mut self.cables[to].down_free_ns;
        let received = sent.max(*down + occupied);
        *down = received;
        received + self.speed.delay_ns
    }

    /// When the cable of `host` has sent what it was given.
    pub fn up_free_ns(&self, host: usize) -> u64 {
        self.cables[host].up_free_ns
    }

    /// Whether the cable of `host` is pulled.
    pub fn is_cut(&self, host: usize) -> bool {
        self.cables[host].cut
    }

    /// Pulls the cable of `host`, or puts it back.
    pub fn set_cut(&mut self, host: usize, cut: bool) {
        self.cables[host].cut = cut;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEED: LinkSpeed = LinkSpeed { delay_ns: 1000, gbit: 8.0 };

    #[test]
    fn a_lone_frame_takes_its_bits_and_the_delay() {
        let mut star = Star::new(2, SPEED);
        assert_eq!(star.arrival_ns(50, 0, 1, 300), 50 + 300 + 1000);
        assert_eq!(star.up_free_ns(0), 350);
    }

    #[test]
    fn frames_of_one_sender_follow_one_another() {
        let mut star = Star::new(3, SPEED);
        assert_eq!(star.arrival_ns(0, 0, 1, 100), 1100);
        assert_eq!(star.arrival_ns(0, 0, 2, 100), 1200);
        assert_eq!(star.arrival_ns(500, 0, 1, 100), 1600);
    }

    #[test]
    fn senders_to_one_receiver_share_its_cable() {
        let mut star = Star::new(3, SPEED);
        assert_eq!(star.arrival_ns(0, 0, 2, 100), 1100);
        assert_eq!(star.arrival_ns(0, 1, 2, 100), 1200);
        // The other direction of that cable is free.
        assert_eq!(star.arrival_ns(0, 2, 0, 100), 1100);
    }

    #[test]
    fn a_stream_has_the_links_bandwidth() {
        let mut star = Star::new(2, SPEED);
        let last = (0..1000).map(|_| star.arrival_ns(0, 0, 1, 1500)).max().unwrap();
        assert_eq!(last, 1000 * 1500 + 1000);
    }
}
