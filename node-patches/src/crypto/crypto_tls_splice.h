#ifndef SRC_CRYPTO_CRYPTO_TLS_SPLICE_H_
#define SRC_CRYPTO_CRYPTO_TLS_SPLICE_H_

#if defined(NODE_WANT_INTERNALS) && NODE_WANT_INTERNALS

#if HAVE_TLS_SPLICE

#include "crypto/crypto_tls.h"
#include "handle_wrap.h"
#include "stream_base.h"
#include "tls_splice.h"
#include "uv.h"

#include <memory>
#include <optional>

namespace node {
namespace crypto {

class TLSSpliceEndpoint;

// What the splices of one TLSWrap share, by which they find each other: either
// one that has both directions, or up to two that have one each.
struct TLSWrap::Splice::Connection {
  // Invariant: if TLSWrap::splice_in_ or splice_out_ points to one of these
  // two, both are what these two are.
  TLSSplice* in = nullptr;
  TLSSplice* out = nullptr;
  // Why writing to the stream below has failed, or 0.
  int write_error = 0;
};

// Joins a TLSWrap to an endpoint, see tlsSocket.spliceTo(). The pump is in
// deps/tls_splice; this class hands it what arrives from libuv and OpenSSL,
// and carries out the steps that it returns. It decides nothing.
//
// While a direction is spliced, this object is pushed on the stream below the
// TLSWrap as a listener, and the TLSWrap points to it.
//
// How the endpoint is read and written is for a TLSSpliceEndpoint to know. But
// for the reads and writes of files, everything happens on the thread of the
// event loop.
class TLSSplice final : public HandleWrap, public TLSWrap::Splice {
 public:
  static void Initialize(Environment* env, v8::Local<v8::Object> target);
  static void RegisterExternalReferences(ExternalReferenceRegistry* registry);

  ~TLSSplice() override;

  // Bits of getState(), which JS reads when onchange() is called: those of
  // tls_splice_get_state(), and some that only this class knows.
  enum State : uint32_t {
    kInOver = TLS_SPLICE_OUTCOME_IN_OVER,
    kOutOver = TLS_SPLICE_OUTCOME_OUT_OVER,
    kInStopped = TLS_SPLICE_OUTCOME_IN_STOPPED,
    kOutStopped = TLS_SPLICE_OUTCOME_OUT_STOPPED,
    kFailed = TLS_SPLICE_OUTCOME_ENDPOINT_FAILED,
    kTLSFailed = TLS_SPLICE_OUTCOME_TLS_FAILED,
    kTLSFailing = TLS_SPLICE_OUTCOME_TLS_FAILING,
    kWantsTLS = TLS_SPLICE_OUTCOME_WANTS_HANDSHAKE,
    kBusy = 1 << 16,            // This is a callback of OpenSSL, in the pump.
    kTransferring = 1 << 17,    // A file is being read or written.
    kEndpointClosed = 1 << 18,  // The stream is gone.
    kWriting = 1 << 19,         // A file is being written.
  };

  // For the TLSSpliceEndpoint. Whether the direction is spliced.
  bool IsSpliced(uint32_t direction) const {
    return (spliced_ & direction) != 0;
  }
  // Whether the endpoint is not going to be read any more.
  bool IsOutOver() const { return (GetPumpState().outcome & kOutOver) != 0; }
  // libuv has polled the descriptor, and found these events.
  void OnPoll(int events);
  // The endpoint can be read or written, as it was waited for.
  void OnReady(int events);
  // The memory to read into (UV_READABLE), or to write from (UV_WRITABLE): the
  // transfer is to be ended, unless the length is 0. `result` is how many bytes
  // were transferred, or a libuv error code.
  tls_splice_transfer BeginTransfer(int event);
  bool EndTransfer(int event, ssize_t result);
  // A transfer that has ended was on another thread.
  void OnTransfer(int event);
  // Gives what the pump holds to another splice, whose source this one is.
  // Returns whether there is room for more.
  bool PassTo(TLSSplice* to);
  // Stops reading the endpoint, as if it had ended.
  void EndSource();
  // Asks the event loop for a turn.
  void ScheduleTurn();
  // Tells JS that getState() has changed, from the top of the stack.
  void Notify();

  // Implement TLSWrap::Splice:
  int ClearOut() override;
  bool IsFailing() override;
  void Absorb(const char* data, size_t len) override;
  void OnDrain() override;
  void OnDestroySSL() override;
  std::shared_ptr<Connection> connection() override { return connection_; }

  // Implement HandleWrap:
  void Close(
      v8::Local<v8::Value> close_callback = v8::Local<v8::Value>()) override;

  // Implement StreamListener:
  uv_buf_t OnStreamAlloc(size_t suggested_size) override;
  void OnStreamRead(ssize_t nread, const uv_buf_t& buf) override;
  void OnStreamAfterWrite(WriteWrap* w, int status) override;
  void OnStreamDestroy() override;

  // Implement MemoryRetainer:
  void MemoryInfo(MemoryTracker* tracker) const override;
  SET_MEMORY_INFO_NAME(TLSSplice)
  SET_SELF_SIZE(TLSSplice)

 private:
  static void New(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Open(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Join(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void HoldSink(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Start(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Stop(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void EndOut(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void RequestTurn(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void ShutdownEndpoint(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Abandon(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Release(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Resume(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void FailBelow(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void WriteError(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void AccessMode(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Unflushed(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void WaitForFlush(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Settle(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void ReadStats(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void GetState(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void GetFailure(const v8::FunctionCallbackInfo<v8::Value>& args);

  TLSSplice(Environment* env, v8::Local<v8::Object> object);

  // The stream below the TLSWrap, while something is spliced.
  StreamBase* lower() const { return static_cast<StreamBase*>(stream()); }
  // That of the splices which a TLSWrap has, or nullptr if it has none.
  static std::shared_ptr<Connection> ConnectionOf(const TLSWrap& tls_wrap);
  // The splice that a TLSWrap calls for cleartext, or nullptr.
  static TLSSplice* InOf(const TLSWrap& tls_wrap);
  // Makes `splice`, or none, the one that a TLSWrap calls for a direction.
  void SetSplice(TLSWrap* tls_wrap, uint32_t direction, TLSSplice* splice);
  // Takes a direction of a TLSWrap over, from the next turn on. False if the
  // TLSWrap is not able to.
  bool TakeOver(TLSWrap* tls_wrap, uint32_t direction, StreamBase* stream);
  // Lets the TLSWrap go: its SSL reads from its own BIO again, and it hears the
  // stream below itself. For both directions, or for one of two.
  void Detach(uint32_t directions);
  // The same, and the stream below is not read before JS asks for it.
  void DetachAndStopReading(uint32_t directions);
  void FreePump();
  bool IsTransferring() const;

  // Tell the pump what has happened, and do what it orders.
  void On(uint32_t event, int value = 0);
  tls_splice_actions Tell(uint32_t event,
                          int value = 0,
                          TLSWrap* tls_wrap = nullptr);
  void Apply(const tls_splice_actions& actions);
  tls_splice_state GetPumpState() const;
  int Decrypt();
  // Let the TLSWrap decrypt and flush, and tell the pump.
  void Cycle();
  // Write what the pump has encrypted.
  void Flush();
  void WriteCollected();
  bool IsLowerBusy() const;
  // The status of the stream below that JS is to be told of, or 0.
  static int LowerEnd(const tls_splice_actions& actions);
  // Lets a TLSWrap, unless it is nullptr, tell JS of the end of the stream
  // below.
  static void HandOver(TLSWrap* tls_wrap, int nread);
  void Turn();
  void UpdateReading();
  void SetReading(bool on);
  void UpdateInterest();
  // At the top of the stack: changes what OpenSSL writes to.
  void AttachWbio();
  void CountBytes();
  // The stream below cannot be written any more.
  void FailTLS(int err);
  // Lets the TLSWrap tell JS of the peer's close_notify.
  void EmitEnd();
  // Give JS what comes after the bytes that release() has returned.
  void ResumeNow();
  void LeaveResuming();
  // Whether the pump has done what it was asked for, which `result` says. If it
  // has panicked, that is the end of the splice and of its socket.
  bool Check(int result);
  // Notify(), if the pump's part of getState() has changed.
  void NotifyOfChange();

  static bool IsFlushed(const TLSWrap& tls_wrap);

  // The handle of the HandleWrap. It is only initialized, and never started,
  // where nothing is polled.
  union {
    uv_poll_t poll_;
    uv_idle_t idle_;
  };
  // Runs the next turn; nullptr until there is one.
  uv_idle_t* turn_ = nullptr;
  // There is one from open() on.
  std::unique_ptr<TLSSpliceEndpoint> endpoint_;
  tls_splice* pump_ = nullptr;
  // Like what `pump_` knows of the connection, it comes from the splice that
  // had a direction of the TLSWrap before, if there is one.
  std::shared_ptr<Connection> connection_;
  // As of the last call into the pump.
  std::unique_ptr<tls_splice_stats> stats_;
  // The TLSWrap, while something is spliced. TLSSplice is a friend of TLSWrap,
  // because a splice takes the place of JavaScript in the middle of what
  // TLSWrap does with its SSL and with the stream below:
  // - ssl_ is what the pump uses in each call.
  // - splice_in_ and splice_out_ are where a splice puts itself.
  // - Cycle(), ClearOut() and EncOut() decrypt and flush in the order in which
  //   TLSWrap does it; cycle_depth_ says that this is under way.
  // - enc_out_ and write_size_ say whether all ciphertext is written.
  // - current_write_, current_empty_write_, write_callback_scheduled_,
  //   InvokeQueued() and has_active_write_issued_by_prev_listener_: the writes
  //   of JS come before those of the splice, and complete as they would.
  // - eof_, shutdown_ and write_error_ are what JS has seen of the connection.
  // - bytes_read_ and bytes_written_ count what JS does not see; EmitRead() and
  //   OnStreamRead() let JS see an end.
  BaseObjectPtr<TLSWrap> tls_wrap_;

  // What JS has been told of the pump's state.
  uint32_t notified_outcome_ = 0;
  // Directions, as TLS_SPLICE_DECRYPT and TLS_SPLICE_ENCRYPT.
  uint32_t spliced_ = 0;
  // Depth of calls into the pump: OpenSSL callbacks can get here again.
  int depth_ = 0;
  bool is_flushing_ = false;
  // The stream below is libuv's: ciphertext goes past the NodeBIOs.
  bool direct_ = false;
  bool rbio_attached_ = false;
  bool wbio_attached_ = false;
  // Whether the stream below is being read. Not known at first, when JS may
  // have been reading it or not.
  std::optional<bool> reading_;
  // Called by the event loop, and so from inside of no other call.
  bool on_top_ = false;
  bool notify_scheduled_ = false;
  // JS has seen the peer's close_notify, which the pump may not have read.
  bool has_close_notify_ = false;
  // The TLSWrap that JS has again, until JS has had a turn to read what
  // release() returned.
  BaseObjectPtr<TLSWrap> resuming_;
  // What has been counted in the TLSWrap's bytesRead and bytesWritten.
  uint64_t counted_in_ = 0;
  uint64_t counted_out_ = 0;
  uint64_t last_activity_ = 0;
};

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE

#endif  // defined(NODE_WANT_INTERNALS) && NODE_WANT_INTERNALS

#endif  // SRC_CRYPTO_CRYPTO_TLS_SPLICE_H_
