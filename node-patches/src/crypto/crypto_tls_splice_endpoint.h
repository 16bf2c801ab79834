#ifndef SRC_CRYPTO_CRYPTO_TLS_SPLICE_ENDPOINT_H_
#define SRC_CRYPTO_CRYPTO_TLS_SPLICE_ENDPOINT_H_

#if defined(NODE_WANT_INTERNALS) && NODE_WANT_INTERNALS

#if HAVE_TLS_SPLICE

#include "crypto/crypto_tls_splice.h"
#include "memory_tracker.h"
#include "stream_base.h"
#include "uv.h"

#include <optional>

namespace node {
namespace crypto {

// What a TLSSplice joins its TLSWrap to. There is a class for each way in which
// libuv reads and writes an endpoint, and TLSSplice knows only this interface.
//
// An endpoint belongs to its TLSSplice and lives as long as that, so that a
// callback of libuv never finds it gone. Events are UV_READABLE and
// UV_WRITABLE.
class TLSSpliceEndpoint : public MemoryRetainer {
 public:
  explicit TLSSpliceEndpoint(TLSSplice* splice) : splice_(splice) {}

  // The first direction is about to be spliced. `stream` is the libuv stream of
  // a net.Socket, and otherwise nullptr. If the net.Socket is not connected,
  // this is called again when it is.
  virtual void Begin(StreamBase* stream) {}
  // Waits for these events, and for no others, and reports them to
  // TLSSplice::OnReady().
  virtual void Await(int events) = 0;
  // Writes what the pump holds, or passes it on. Returns whether there is room
  // for more. Not called for a descriptor, which the pump writes itself.
  virtual bool Deliver() { return false; }
  // Keeps the pump from writing to the endpoint until Unhold(), because JS has
  // something to write first.
  virtual void Hold() {}
  virtual void Unhold() {}
  // The TLS peer has ended, and the endpoint has every byte.
  virtual void Shutdown() {}
  // The splice is to stop: what can be cancelled is cancelled.
  virtual void Cancel() {}
  // Nobody waits any more for what could not be cancelled.
  virtual void Abandon() {}
  // The directions are about to go back to JS.
  virtual void Release(uint32_t directions) {}
  // No direction is spliced any more.
  virtual void End() {}
  // The handle of the TLSSplice is about to be closed.
  virtual void Close() {}
  // Bits of TLSSplice::State.
  virtual uint32_t GetState() const { return 0; }

  SET_NO_MEMORY_INFO()

 protected:
  TLSSplice* const splice_;
};

// A file descriptor that can be polled. The pump reads and writes it.
class PollEndpoint final : public TLSSpliceEndpoint {
 public:
  // `handle` is the uv_poll_t of the TLSSplice. As a HandleWrap, the TLSSplice
  // closes it.
  PollEndpoint(TLSSplice* splice, uv_poll_t* handle)
      : TLSSpliceEndpoint(splice), handle_(handle) {}

  void Await(int events) override;
  void End() override { Await(0); }

  SET_MEMORY_INFO_NAME(PollEndpoint)
  SET_SELF_SIZE(PollEndpoint)

 private:
  static void OnPoll(uv_poll_t* handle, int status, int events);

  uv_poll_t* const handle_;
  // What the handle polls for while it is active.
  int events_ = 0;
};

// A file, which is always ready and may block: libuv's threads read and write
// it, at its own position, one read and one write at a time.
class FileEndpoint final : public TLSSpliceEndpoint {
 public:
  using TLSSpliceEndpoint::TLSSpliceEndpoint;

  void Await(int events) override;
  void Cancel() override;
  void Abandon() override;
  void End() override { Cancel(); }
  uint32_t GetState() const override;

  SET_MEMORY_INFO_NAME(FileEndpoint)
  SET_SELF_SIZE(FileEndpoint)

 private:
  void BeginTransfer(int event);
  static void OnTransfer(uv_fs_t* req);

  uv_fs_t read_;
  uv_fs_t write_;
  int fd_ = -1;
  // The events (UV_READABLE, UV_WRITABLE) whose transfers are under way. While
  // there is one, `keep_alive_` keeps the TLSSplice alive, which has the memory
  // that is read or written.
  int transfers_ = 0;
  BaseObjectPtr<TLSSplice> keep_alive_;
  // Abandon() was called.
  bool is_abandoned_ = false;
};

// The libuv stream of a net.Socket. While something is spliced, this is pushed
// on the stream as a listener.
class StreamEndpoint final : public TLSSpliceEndpoint, public StreamListener {
 public:
  using TLSSpliceEndpoint::TLSSpliceEndpoint;

  void Begin(StreamBase* stream) override;
  void Await(int events) override;
  bool Deliver() override;
  void Hold() override { is_held_ = true; }
  void Unhold() override { is_held_ = false; }
  void Release(uint32_t directions) override;
  void End() override;
  uint32_t GetState() const override;

  // Implement StreamListener:
  uv_buf_t OnStreamAlloc(size_t suggested_size) override;
  void OnStreamRead(ssize_t nread, const uv_buf_t& buf) override;
  void OnStreamAfterWrite(WriteWrap* w, int status) override;
  void OnStreamDestroy() override;

  SET_MEMORY_INFO_NAME(StreamEndpoint)
  SET_SELF_SIZE(StreamEndpoint)

 private:
  StreamBase* base() { return static_cast<StreamBase*>(stream_); }
  // Whether the stream is read for the splice, and not for JS.
  bool IsSource() const;
  int WriteByte(uint8_t byte);
  // Whether the byte that WriteByte() has left to the stream is not going to be
  // written, since the stream is closing.
  bool WillCancelWrite();
  void EndWrite(ssize_t result);

  bool is_held_ = false;
  bool is_reading_ = false;
  // The turn in which an end of the stream was doubted last.
  std::optional<uint64_t> doubted_in_;
  bool is_closed_ = false;
  bool has_ended_ = false;
  // The write of WriteByte(): `is_writing_` inside of that call, `pending_`
  // from then on until the stream has written the byte.
  bool is_writing_ = false;
  WriteWrap* pending_ = nullptr;
};

// The splice of another TLSSocket: what one of the two decrypts, the other one
// encrypts.
class JoinedEndpoint final : public TLSSpliceEndpoint {
 public:
  using TLSSpliceEndpoint::TLSSpliceEndpoint;
  ~JoinedEndpoint() override { Close(); }

  void Join(JoinedEndpoint* peer);

  void Await(int events) override;
  bool Deliver() override;
  void Shutdown() override;
  void Close() override;

  SET_MEMORY_INFO_NAME(JoinedEndpoint)
  SET_SELF_SIZE(JoinedEndpoint)

 private:
  void WakePeer();

  // The endpoint of the other splice; nullptr once one of the two is closed.
  JoinedEndpoint* peer_ = nullptr;
  // The last Deliver() has found no room at the peer.
  bool waits_for_room_ = false;
};

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE

#endif  // defined(NODE_WANT_INTERNALS) && NODE_WANT_INTERNALS

#endif  // SRC_CRYPTO_CRYPTO_TLS_SPLICE_ENDPOINT_H_
