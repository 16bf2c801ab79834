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
  // Invariant: as long as TLSWrap::splice_in_ or splice_out_ is one of these
  // two, the other one is the other of these two.
  TLSSplice* in = nullptr;
  TLSSplice* out = nullptr;
};

// Joins a TLSWrap to an endpoint, see tlsSocket.spliceTo(). The pump is in
// deps/tls_splice: this class tells the pump what has happened, and carries out
// what the pump orders.
//
// While a direction is spliced, this object is pushed on the stream below the
// TLSWrap as a listener, and the TLSWrap points to it.
//
// How the endpoint is read and written is for a TLSSpliceEndpoint to know.
// Everything happens on the thread of the event loop, except that other threads
// read and write files.
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
    kEndpointFailed = TLS_SPLICE_OUTCOME_ENDPOINT_FAILED,
    kTLSFailed = TLS_SPLICE_OUTCOME_TLS_FAILED,
    kTLSFailing = TLS_SPLICE_OUTCOME_TLS_FAILING,
    kWantsHandshake = TLS_SPLICE_OUTCOME_WANTS_HANDSHAKE,
    kBusy = 1 << 16,            // The pump is inside of a call into OpenSSL.
    kTransferring = 1 << 17,    // A file is being read or written.
    kEndpointClosed = 1 << 18,  // The stream is gone.
    kWriting = 1 << 19,         // A file is being written.
    kCutOff = 1 << 20,          // Nothing can be sent to the peer any more.
    kEndpointEnded = 1 << 21,   // The end of the stream was read.
  };

  // The following methods are for the TLSSpliceEndpoint.
  // Whether the direction is spliced.
  bool IsSpliced(uint32_t direction) const {
    return (spliced_ & direction) != 0;
  }
  // Whether the endpoint is not going to be read any more.
  bool IsOutOver() const { return (GetPumpState().outcome & kOutOver) != 0; }
  // The number of the present turn of the event loop. libuv waits for events
  // at the beginning of a turn.
  uint64_t turn() const;
  // Doubts an end that libuv reports of a stream: the stream may have more, and
  // so has to be read on. Returns false if the end is certain. `doubted_in` is
  // the turn in which an end was doubted last, and is set.
  //
  // An end that read(2) has found comes with the buffer of that call. libuv
  // concludes others from a hang-up: 1.52 and later if POLLIN is not reported,
  // which is so, too, if nobody read the stream when libuv waited, and the
  // callback of another handle has started reading it in the same turn; earlier
  // versions after a short read(2), which may also have stopped in front of an
  // error, urgent data or a descriptor. If there are no bytes and no error, the
  // next turn, in which libuv waits for POLLIN, brings the end again.
  bool DoubtEnd(ssize_t nread,
                const uv_buf_t& buf,
                std::optional<uint64_t>* doubted_in) const;
  // Polling the descriptor has found these events.
  void OnPoll(int events);
  // The endpoint can be read or written: these events were waited for.
  void OnReady(int events);
  // Gives the memory to read into (UV_READABLE) or to write from (UV_WRITABLE).
  // If its length is not 0, EndTransfer() must follow, with the number of bytes
  // that were transferred, or a libuv error code.
  tls_splice_transfer BeginTransfer(int event);
  bool EndTransfer(int event, ssize_t result);
  // EndTransfer() was called for a transfer that has taken until now.
  void OnTransfer(int event);
  // Gives what the pump holds to another splice, whose source this one is.
  // Returns whether there is room for more.
  bool PassTo(TLSSplice* to);
  // Stops reading the endpoint, as if it had ended.
  void LeaveSource();
  // Asks the event loop for a turn.
  void ScheduleTurn();
  // Tells JS that getState() has changed, from the top of the stack.
  void Notify();

  // Implement TLSWrap::Splice:
  int ClearOut() override;
  bool IsFailing() override;
  bool Absorb(const char* data, size_t len) override;
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
  // A method that JS calls without arguments, and that returns nothing.
  template <void (TLSSplice::*method)()>
  static void Call(const v8::FunctionCallbackInfo<v8::Value>& args);
  void HoldSink();
  void UnholdSink();
  void Stop();
  void ShutdownEndpoint();
  void Abandon();
  void FailBelow();

  static void New(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Open(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Join(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Start(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void SetStream(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Release(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Resume(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void WriteError(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void AccessMode(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void EmitRead(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void Unflushed(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void WaitForFlush(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void ReadStats(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void GetState(const v8::FunctionCallbackInfo<v8::Value>& args);
  static void GetFailure(const v8::FunctionCallbackInfo<v8::Value>& args);

  TLSSplice(Environment* env, v8::Local<v8::Object> object);

  // The stream below the TLSWrap, while something is spliced.
  StreamBase* lower() const { return static_cast<StreamBase*>(stream()); }
  // Whether the stream below is one of libuv's: then ciphertext goes past the
  // NodeBIOs.
  bool IsDirect() const;
  // What the splices of a TLSWrap share, or nullptr if it has none.
  static std::shared_ptr<Connection> ConnectionOf(const TLSWrap& tls_wrap);
  // The splice that a TLSWrap calls for cleartext, or nullptr.
  static TLSSplice* InOf(const TLSWrap& tls_wrap);
  // Makes `splice`, or none, the one that a TLSWrap calls for a direction.
  void SetSplice(TLSWrap* tls_wrap, uint32_t direction, TLSSplice* splice);
  // Takes a direction of a TLSWrap over, from the next turn on. False if the
  // TLSWrap is not able to.
  bool TakeOver(TLSWrap* tls_wrap, uint32_t direction, StreamBase* stream);
  // Gives directions back to the TLSWrap: its SSL uses its own BIO again, and
  // with the last direction the TLSWrap listens to the stream below again.
  void Detach(uint32_t directions);
  // Detach(), and the stream below is not read before JS asks for it.
  void DetachAndStopReading(uint32_t directions);
  // Frees the pump, as soon as that is possible.
  void FreePump();
  bool IsTransferring() const;

  // Tells the pump what has happened, and does what it orders.
  void On(uint32_t event, int value = 0);
  // Only tells the pump. The event is one of the connection of `tls_wrap`,
  // which is passed if JS has it again, and otherwise is `tls_wrap_`.
  tls_splice_actions Tell(uint32_t event,
                          int value = 0,
                          TLSWrap* tls_wrap = nullptr);
  void Apply(const tls_splice_actions& actions);
  // Tells the pump in which turn the event loop is.
  void BeginTurn(uint64_t ahead = 0);
  tls_splice_state GetPumpState() const;
  // What ClearOut() does while 'in' is spliced.
  int Decrypt();
  // Lets the TLSWrap decrypt and flush, and tells the pump.
  void Cycle();
  // Writes what the pump has encrypted.
  void Flush();
  void WriteCollected();
  bool IsLowerBusy() const;
  // The status of the stream below that JS is to be told of, or 0.
  static int LowerEnd(const tls_splice_actions& actions);
  // Tells JS of the end of the stream below, if that is ordered, by way of a
  // TLSWrap that is not nullptr.
  void HandOver(const tls_splice_actions& actions, TLSWrap* tls_wrap);
  void TakeOverEnd(const tls_splice_actions& actions);
  // The stream below gives nothing more: `status` is UV_EOF or an error.
  void EndReading(int status);
  void UpdateReading();
  void SetReading(bool on);
  void UpdateInterest();
  bool IsAttached(uint32_t direction) const {
    return (attached_ & direction) != 0;
  }
  // Lets OpenSSL read from the buffers of the pump, or write to them, if the
  // direction is spliced and the stream below is one of libuv. Only to be
  // called at the top of the stack, where OpenSSL is in no call.
  void Attach(uint32_t direction);
  // Gives back memory that the TLSWrap does not use while the splice lasts.
  void FreeNodeBIOs() const;
  // Reads the counters of the pump, and adds what is new to those of the
  // TLSWrap.
  void CountBytes();
  // The stream below cannot be written any more.
  void FailTLS(int err);
  // Lets the TLSWrap tell JS of the peer's close_notify.
  void EmitEnd();
  // Gives JS what comes after the bytes that release() has returned.
  void ResumeNow();
  void RestoreReading(TLSWrap* tls_wrap);
  void LeaveResuming();
  // Whether the pump has done what it was asked for: `result` is what the call
  // has returned. If the pump has panicked, the splice and its socket end.
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
  // Never nullptr. Until open() or join() replaces it, this is a StreamEndpoint
  // without a stream.
  std::unique_ptr<TLSSpliceEndpoint> endpoint_;
  tls_splice* pump_ = nullptr;
  // Never nullptr. If another splice has a direction of the TLSWrap when this
  // one starts, both use the Connection of that other splice, as their pumps
  // do.
  std::shared_ptr<Connection> connection_;
  // The counters of the pump, as they were when it could last be asked.
  std::unique_ptr<tls_splice_stats> stats_;
  // The TLSWrap, while something is spliced. TLSSplice is a friend of TLSWrap,
  // because a splice takes the place of JavaScript in the middle of what
  // TLSWrap does with its SSL and with the stream below:
  // - ssl_ is what the pump uses in each call.
  // - splice_in_ and splice_out_ are where a splice puts itself.
  // - Cycle(), ClearOut() and EncOut() decrypt and flush in the order in which
  //   TLSWrap does it; cycle_depth_ says that this is under way.
  // - enc_out_ and write_size_ say whether all ciphertext is written. enc_in_
  //   and enc_out_ give back memory that is not used while the splice lasts.
  // - current_write_, current_empty_write_, write_callback_scheduled_,
  //   InvokeQueued() and has_active_write_issued_by_prev_listener_: the writes
  //   of JS come before those of the splice, and complete as they would.
  // - eof_, shutdown_ and write_error_ are what JS has seen of the connection.
  // - bytes_read_ and bytes_written_ count what JS does not see; EmitRead() and
  //   OnStreamRead() let JS see an end.
  BaseObjectPtr<TLSWrap> tls_wrap_;

  // The outcome of which Notify() has told JS.
  uint32_t notified_outcome_ = 0;
  // The directions that are spliced: TLS_SPLICE_DECRYPT and TLS_SPLICE_ENCRYPT.
  // The pump cannot say it: if JS gives a direction back in a callback of
  // OpenSSL, the pump hears of that when its call has returned, and this class
  // must not use the TLSWrap from that moment on.
  uint32_t spliced_ = 0;
  // How many calls into the pump are under way: callbacks of OpenSSL run JS,
  // which can get here again. The pump refuses a call inside of another call.
  // FreePump(), and callers that do something else then, know it in advance.
  int depth_ = 0;
  // Flush() is under way.
  bool is_flushing_ = false;
  // The directions whose BIO is one of the pump's (tls_splice_attach). The pump
  // knows, too, but would have to be asked for each read and write of the
  // stream below.
  uint32_t attached_ = 0;
  // Whether the stream below is being read. This is not known at first: JS may
  // have been reading it or not.
  std::optional<bool> reading_;
  // The turn in which an end of the stream below was doubted last.
  std::optional<uint64_t> doubted_in_;
  // This is inside of a callback of the event loop, and no call into OpenSSL or
  // into a stream is under way.
  bool on_top_ = false;
  bool notify_scheduled_ = false;
  // JS has seen the peer's close_notify, which the pump may not have read.
  bool has_close_notify_ = false;
  // The TLSWrap that JS has again, from release() until resume() is done.
  BaseObjectPtr<TLSWrap> resuming_;
  uint64_t last_activity_ = 0;
};

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE

#endif  // defined(NODE_WANT_INTERNALS) && NODE_WANT_INTERNALS

#endif  // SRC_CRYPTO_CRYPTO_TLS_SPLICE_H_
