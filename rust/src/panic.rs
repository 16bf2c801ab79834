//! No panic crosses the C ABI, in either direction.

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs `f`; `None` if it panics. Whatever `f` may have left half-changed is then
/// not to be looked at again: the caller keeps a flag for that.
pub(crate) fn guard<T>(f: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(f)).ok()
}

#[cfg(test)]
#[allow(clippy::undocumented_unsafe_blocks)]
mod tests {
    use openssl_sys as ossl;

    use crate::common::{abi, Options, Rig};
    use crate::error::*;
    use crate::ffi::*;
    use crate::splice::Bio;

    /// A splice with ciphertext to be read, and a source to be. What one of its BIOs
    /// does next panics.
    fn sabotaged(bio: Bio) -> Rig {
        let mut rig = Rig::new(Options::default());
        rig.start();
        rig.peer_write(1000);
        rig.source_write(1000);
        rig.peer_turn();
        let code = unsafe { &*rig.splice }.with(|splice| {
            splice.sabotage(bio);
            TLS_SPLICE_OK
        });
        assert_eq!(code, TLS_SPLICE_OK);
        rig
    }

    #[test]
    fn a_panic_in_a_read_of_the_bio_is_one_of_the_call() {
        let rig = sabotaged(Bio::Read);
        let mut actions = abi::no_actions();
        unsafe {
            let (splice, ssl) = (rig.splice, rig.ours.0);
            let code = tls_splice_on(splice, TLS_SPLICE_ON_DECRYPT, 0, ssl, &mut actions);
            assert_eq!(code, TLS_SPLICE_EPANIC);
            assert_eq!((actions.orders, actions.ssl_ret), (0, 1));
            abi::refused(rig.splice, rig.ours.0, TLS_SPLICE_EPANIC);
        }
        assert_eq!(rig.ours.read_all().1, ossl::SSL_ERROR_SYSCALL);
        rig.abandon();
    }

    #[test]
    fn a_panic_in_a_write_of_the_bio_is_one_of_the_call() {
        let rig = sabotaged(Bio::Write);
        let mut actions = abi::no_actions();
        unsafe {
            let (splice, ssl) = (rig.splice, rig.ours.0);
            let code = tls_splice_on(splice, TLS_SPLICE_ON_SOURCE_READY, 0, ssl, &mut actions);
            assert_eq!(code, TLS_SPLICE_EPANIC);
            assert_eq!((actions.orders, actions.ssl_ret), (0, 1));
            abi::refused(rig.splice, rig.ours.0, TLS_SPLICE_EPANIC);
        }
        assert!(!rig.ours.write(b"x"));
        rig.abandon();
    }

    #[test]
    fn a_panic_when_the_bio_is_asked_what_it_holds_is_one_of_the_call() {
        let rig = sabotaged(Bio::Write);
        let mut events = 7;
        unsafe {
            let code = tls_splice_begin_wait(rig.splice, rig.ours.0, &mut events);
            assert_eq!((code, events), (TLS_SPLICE_EPANIC, 0));
            abi::refused(rig.splice, rig.ours.0, TLS_SPLICE_EPANIC);
        }
        rig.abandon();
    }

    #[test]
    fn a_panic_in_a_call_of_somebody_else_is_one_of_the_next_call() {
        for bio in [Bio::Read, Bio::Write] {
            let rig = sabotaged(bio);
            match bio {
                Bio::Read => assert_eq!(rig.ours.read_all().1, ossl::SSL_ERROR_SYSCALL),
                Bio::Write => assert!(!rig.ours.write(b"x")),
            }
            unsafe { abi::refused(rig.splice, rig.ours.0, TLS_SPLICE_EPANIC) };
            rig.abandon();
        }
    }

    #[test]
    fn a_panic_in_what_two_handles_do_leaves_neither() {
        let mut rigs = [0; 3].map(|_| Rig::new(Options::default()));
        for rig in &mut rigs {
            rig.start();
        }
        let [from, to, other] = &rigs;
        let ssl = to.ours.0;
        unsafe {
            let code = (*from.splice).with_both(&*to.splice, |_, _| panic!());
            assert_eq!(code, TLS_SPLICE_EPANIC);
            abi::refused(from.splice, from.ours.0, TLS_SPLICE_EPANIC);
            abi::refused(to.splice, ssl, TLS_SPLICE_EPANIC);
            // A panic that one splice had before does not concern the other.
            let code = tls_splice_pass(other.splice, to.splice, ssl);
            assert_eq!(code, TLS_SPLICE_EPANIC);
            assert_eq!(abi::stats(other.splice), other.stats());
        }
        let [from, to, _other] = rigs;
        from.abandon();
        to.abandon();
    }
}
