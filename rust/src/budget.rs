//! Bounded work per turn of the event loop.

/// The work that one direction does before it lets the event loop turn, in bytes.
const ALLOWANCE: usize = 256 * 1024;

/// A kind of call that moves bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// A system call.
    System,
    /// `SSL_read`, which may find the bytes decrypted already.
    SslRead,
}

impl Call {
    /// What one call counts as at least, in bytes: the call itself costs about as much as
    /// moving this many.
    const fn least_work(self) -> usize {
        match self {
            Call::System => 64,
            Call::SslRead => 16,
        }
    }
}

/// The work that one direction has done since the event loop last turned.
///
/// Work is counted in bytes, and each call that moves bytes counts as
/// [`Call::least_work`] of them at least. So a budget is spent after a bounded number of
/// calls, however little each of them moves.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    spent: usize,
}

impl Budget {
    /// Counts one call that brought `bytes` bytes into the splice.
    pub fn spend(&mut self, call: Call, bytes: usize) {
        self.spent += bytes.max(call.least_work());
    }

    /// Counts one more call, on `bytes` bytes that [`Budget::spend`] has counted when
    /// they came. Only what the call costs beyond its bytes is added.
    pub fn spend_again(&mut self, call: Call, bytes: usize) {
        self.spent += call.least_work().saturating_sub(bytes);
    }

    /// How many bytes more are work for this turn.
    pub fn left(&self) -> usize {
        ALLOWANCE.saturating_sub(self.spent)
    }

    /// Whether it is time to let the event loop turn.
    pub fn is_spent(&self) -> bool {
        self.spent >= ALLOWANCE
    }

    /// Whether the work is twice what one turn allows. This limit is for input whose
    /// amount was bounded by [`Budget::is_spent`] before it was read, and of which no
    /// rest is to be left for the next turn if that can be helped.
    pub fn is_overdrawn(&self) -> bool {
        self.spent >= 2 * ALLOWANCE
    }

    /// Begins again at zero, since the event loop turns.
    pub fn renew(&mut self) {
        self.spent = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many calls of `spend` with that many bytes each fit into one turn.
    fn calls(mut spend: impl FnMut(&mut Budget)) -> usize {
        let mut budget = Budget::default();
        let mut calls = 0;
        while !budget.is_spent() {
            assert!(!budget.is_overdrawn());
            spend(&mut budget);
            calls += 1;
        }
        calls
    }

    #[test]
    fn large_pieces_count_as_their_bytes() {
        for call in [Call::System, Call::SslRead] {
            assert_eq!(calls(|budget| budget.spend(call, 16 * 1024)), 16);
            assert_eq!(calls(|budget| budget.spend(call, 1024)), 256);
        }
    }

    #[test]
    fn small_pieces_count_as_calls() {
        for bytes in [0, 1, 16] {
            assert_eq!(calls(|budget| budget.spend(Call::System, bytes)), 4096);
            assert_eq!(calls(|budget| budget.spend(Call::SslRead, bytes)), 16_384);
        }
    }

    #[test]
    fn bytes_count_once_and_calls_count_each_time() {
        let through = |bytes| {
            move |budget: &mut Budget| {
                budget.spend(Call::SslRead, bytes);
                budget.spend_again(Call::System, bytes);
            }
        };
        assert_eq!(calls(through(1024)), 256);
        assert_eq!(calls(through(64)), 4096);
        assert_eq!(calls(through(1)), 3319);
    }

    #[test]
    fn a_renewed_budget_is_whole() {
        let mut budget = Budget::default();
        budget.spend(Call::System, 2 * ALLOWANCE);
        assert!(budget.is_spent() && budget.is_overdrawn());
        budget.renew();
        assert!(!budget.is_spent() && !budget.is_overdrawn());
    }
}
