'use strict';

// Takes a direction of a socket over from JavaScript, and gives the direction back. A TLSSocket,
// and a net.Socket that is the endpoint of a splice, are treated alike: a Reader takes
// the place of JavaScript in reading the socket, a Writer in writing to it, and a
// Takeover is all that splices have to do with the socket. The words of the comments
// are explained in internal/tls/splice.

const {
  ArrayPrototypeEvery, ArrayPrototypeFindIndex, ArrayPrototypePush,
  ArrayPrototypeSlice, ArrayPrototypeSome, ArrayPrototypeUnshift, FunctionPrototypeCall, MathMax,
  ObjectAssign, ObjectDefineProperty, ObjectGetOwnPropertyDescriptor, ObjectGetPrototypeOf,
  ReflectApply, SafeSet, Symbol,
} = primordials;

const { Writable: { prototype: { end: writableEnd, write: writableWrite } } } = require('stream');
const { Socket } = require('net');
const { FastBuffer } = require('internal/buffer');
const JSStreamSocket = require('internal/js_stream_socket');
const { clearTimeout, setTimeout } = require('timers');
const { kTLSError, kTakeover } = require('internal/net');
const { kTimeout } = require('internal/timers');
const { kBuffer } = require('internal/stream_base_commons');
const { ErrnoException, codes: { ERR_INVALID_STATE } } = require('internal/errors');
const { TLSSplice: NativeSplice, TLSWrap } = internalBinding('tls_wrap');
const { WriteWrap } = internalBinding('stream_wrap');
const timersBinding = internalBinding('timers');
const { UV_ENOBUFS, UV_ENOTCONN, UV_EPIPE, UV_EPROTO } = internalBinding('uv');

// On a chunk that a WriteGuard has written: the function to call when the Writable has
// come to the chunk.
const kTurn = Symbol('kTurn');

// Methods and properties of a TLSSplice, some of which its endpoint has, too: a Takeover and a
// WriteGuard tell what happens to their socket, and ask for the last move.
const kLastMove = Symbol('kLastMove');
const kOnClose = Symbol('kOnClose');
const kOnCloseBelow = Symbol('kOnCloseBelow');
const kOnConnect = Symbol('kOnConnect');
const kOnDestroy = Symbol('kOnDestroy');
const kOnEmptyWrite = Symbol('kOnEmptyWrite');
const kOnWrite = Symbol('kOnWrite');
const kOnFinal = Symbol('kOnFinal');
const kOnReadEnd = Symbol('kOnReadEnd');
const kOnSecure = Symbol('kOnSecure');
const kOnTLSError = Symbol('kOnTLSError');

function ignore() {
  return 0;
}

// The methods of a JSStream whose JSStreamSocket has closed. They answer as the handle of a socket
// does whose connection is gone.
const kClosedStream = {
  __proto__: null,
  onshutdown: () => UV_ENOTCONN,
  onwrite: () => UV_EPIPE,
};

// Calls a function that runs code of the user. An exception of that code is reported as
// uncaught and does not reach the splice.
function guarded(callback) {
  try {
    return callback();
  } catch (err) {
    process.nextTick(() => { throw err; });
  }
}

// Ends a stream, and calls back when that is done or has failed. The end() of the stream may
// be the user's, which may throw, do nothing, or drop a callback.
function end(stream, callback) {
  guarded(() => stream.end());
  FunctionPrototypeCall(writableEnd, stream, callback);
}

// All that splices have to do with one socket. There is none before the first splice
// and after the last one. The socket's own methods call it, and tell it what happens,
// since anybody can remove a listener.
class Takeover {
  reader = null;  // The Reader of the splice that reads the socket.
  writer = null;  // The Writer of the splice that writes to it.
  guard = null;   // The WriteGuard, which may outlive the Writer.
  rest = null;    // Bytes that a Reader is about to give to the `onread` callback.
  #socket;
  #watchers = new SafeSet();
  #idleTimer;     // Runs for the rest of the socket's idle time.

  constructor(socket) {
    this.#socket = socket;
  }

  // Returns the Takeover of the socket, and makes one if there is none.
  static of(socket) {
    socket[kTakeover] ??= new Takeover(socket);
    return socket[kTakeover];
  }

  // Tells a splice or an endpoint from now on what happens to the socket.
  static watch(socket, watcher) {
    Takeover.of(socket).#watchers.add(watcher);
  }

  static unwatch(socket, watcher) {
    const takeover = socket[kTakeover];
    takeover?.#watchers.delete(watcher);
    takeover?.removeIfUnused();
  }

  // The time that counts as idle starts over when JavaScript has the socket again.
  static restartIdleTime(socket) {
    clearTimeout(socket[kTakeover]?.#idleTimer);
    if (!socket.destroyed)
      socket._unrefTimer();
  }

  // A Reader or a Writer does not use the socket any more. Returns whether it did.
  detach(user) {
    const side = this.reader === user ? 'reader' : 'writer';
    if (this[side] !== user)
      return false;
    this[side] = null;
    return true;
  }

  removeIfUnused() {
    if (this.#watchers.size === 0 && this.guard === null)
      this.#socket[kTakeover] = undefined;
  }

  #tell(name, ...args) {
    // A copy, since a splice that closes may start the next one.
    for (const watcher of new SafeSet(this.#watchers))
      guarded(() => watcher[name]?.(this.#socket, ...args));
  }

  // The socket is about to emit 'close'.
  onClose() {
    this.#tell(kOnClose);
  }

  // The socket is connected, and about to emit 'connect'. Returns whether a splice has
  // destroyed the socket, which does not emit 'connect' then.
  onConnect() {
    this.#tell(kOnConnect);
    return this.#socket.destroyed;
  }

  // A TLSSocket has emitted 'secure'. `checks`: a client or a server should have
  // verified the certificate of the peer by then.
  onSecure(checks) {
    const { secureConnecting, _requestCert, _rejectUnauthorized } = this.#socket;
    this.#tell(kOnSecure, checks && secureConnecting && _requestCert && _rejectUnauthorized);
  }

  // What a TLSSocket runs over has closed, which destroys the TLSSocket. Returns whether a splice
  // of the TLSSocket, or of another one that runs over it, does that later: a stream of
  // JavaScript that has ended both ways closes itself, and the splice may have yet to deliver
  // what it has read of the stream.
  onCloseBelow(below) {
    const { _handle: handle } = this.#socket;
    // The socket may have been destroyed, and connected again.
    const isDelayed = handle?._parentWrap === below && below instanceof JSStreamSocket &&
                      below.stream.readableEnded && this.delayDestroy();
    // TLS may have something to send yet, at least its close_notify. The JSStreamSocket, which has
    // no handle any more, would fail an assertion.
    if (isDelayed)
      ObjectAssign(handle._parent, kClosedStream);
    return isDelayed;
  }

  // Asks the splices to destroy the socket when they have delivered what they have read. Returns
  // whether one of them will.
  delayDestroy() {
    let isDelayed = false;
    for (const watcher of this.#watchers)
      isDelayed = watcher[kOnCloseBelow]?.() || isDelayed;
    return isDelayed;
  }

  // The handle of the socket has been read to its end. JavaScript does not know yet.
  onReadEnd() {
    this.#tell(kOnReadEnd);
  }

  // TLS has failed. The socket may or may not be destroyed because of that.
  onTLSError(err) {
    this.#tell(kOnTLSError, err);
  }

  // Called by socket._destroy().
  beforeDestroy(err) {
    this.#tell(kOnDestroy, err);
    clearTimeout(this.#idleTimer);
  }

  // Called by socket._final(). Returns whether _final() has to wait: a TLSSocket ends when
  // its splice has sent what the splice holds. Then _final() is called again.
  beforeFinal(callback) {
    const { writer } = this;
    const socket = this.#socket;
    if (!socket.encrypted || writer === null || writer.hasHeldFinal)
      return false;
    writer.hasHeldFinal = true;
    const { _final } = Socket.prototype;
    const { _handle: handle } = socket;
    const unlessFailed = (next) => (err) => { err ? callback(err) : next(); };
    writer.splice[kOnFinal](unlessFailed(() => flush(
      socket, handle, unlessFailed(() => FunctionPrototypeCall(_final, socket, callback)))));
    return true;
  }

  // The idle time of the socket has passed as far as JavaScript can tell, which does
  // not see the bytes that a splice moves. Emits 'timeout', now or when the time has really
  // passed. `reported`: when bytes had last moved by the time of the previous 'timeout'. Returns
  // false if no splice moves bytes over the socket, or over another socket that runs over it, or
  // if the socket is connecting: then what moves has nothing to do with the socket.
  onIdle(reported) {
    clearTimeout(this.#idleTimer);
    const socket = this.#socket;
    if (socket.connecting)
      return false;
    let last = 0;
    for (const watcher of this.#watchers)
      last = MathMax(last, watcher[kLastMove] ?? 0);
    if (last === 0)
      return false;
    const { timeout, [kTimeout]: timer } = socket;
    const begun = timer?._idleStart;
    const isUnchanged = () => socket.timeout === timeout && timer?._idleStart === begun;
    const rest = last + timeout - timersBinding.getLibuvNow();
    if (rest <= 0 && last !== reported) {
      reported = last;
      socket.emit('timeout');
      // Another timer would keep a destroyed socket for as long again.
      if (socket.destroyed || !isUnchanged())
        return true;
    }
    this.#idleTimer = setTimeout(() => {
      if (isUnchanged())
        this.onIdle(reported);
    }, rest > 0 ? rest : timeout);
    this.#idleTimer.unref();
    return true;
  }
}

// Whether a socket that had that handle, or none, has not been connected again since. If it
// has been, nobody waits any more for what was written before. A TLSSocket that tries several
// addresses gets another TLSWrap for each; a TLSSocket that is destroyed and connected again to
// one address does not use TLS.
function isSameConnection(socket, handle) {
  const { _handle: now } = socket;
  return !now || now === handle || (handle instanceof TLSWrap && now instanceof TLSWrap);
}

// Calls back once all ciphertext is written to the stream below a TLSSocket, with the
// error or null. Writes of JavaScript wait for that by themselves, so that the shutdown
// after them does not have to.
function flush(socket, handle, callback) {
  if (!isSameConnection(socket, handle))
    return;
  handle = socket._handle;
  const onWritten = (status, err) => {
    if (status === 0 && !socket.destroyed)
      socket._unrefTimer();
    // The socket has reported why TLS cannot send any more, and reports that once. So end()
    // succeeds although the bytes before it were not sent.
    if (status === UV_EPROTO && handle[kTLSError])
      status = 0;
    callback(status < 0 ? new ErrnoException(status, 'write', err) : null);
  };
  const req = new WriteWrap();
  req.handle = handle;
  req.oncomplete = (status, handle, err) => onWritten(status, err);
  const status = handle ? NativeSplice.flush(handle, req) : 0;
  if (status <= 0)
    onWritten(status);
}

function isEmpty(chunk) {
  return chunk === '' || chunk?.length === 0;
}

function setLength(chunk, length) {
  ObjectDefineProperty(chunk, 'length', { __proto__: null, configurable: true, value: length });
}

// Returns the method that a guard stands in front of. `own` is the descriptor of the
// property that the socket had before it was guarded; without one it is the method that
// the prototypes of the socket have now.
function methodBelow(socket, own, name) {
  if (own === undefined)
    return ObjectGetPrototypeOf(socket)[name];
  return own.get ? FunctionPrototypeCall(own.get, socket) : own.value;
}

// Makes the methods of a guarded socket. The user can keep a method and call it after
// the splice.
const guardMakers = {
  __proto__: null,
  write: (own) => function write(chunk, ...args) {
    // An empty write only lets TLS send its own messages, see renegotiate().
    if (!isEmpty(chunk))
      this[kTakeover]?.guard?.check();
    return ReflectApply(methodBelow(this, own, 'write'), this, [chunk, ...args]);
  },
  end: (own) => function end(chunk, ...args) {
    if (chunk != null && typeof chunk !== 'function' && !isEmpty(chunk))
      this[kTakeover]?.guard?.check();
    return ReflectApply(methodBelow(this, own, 'end'), this, [chunk, ...args]);
  },
  _write: (own) => function _write(chunk, encoding, callback) {
    if (!this[kTakeover]?.guard?.onChunk(chunk, callback)) {
      ReflectApply(methodBelow(this, own, '_write'), this, [chunk, encoding, callback]);
    }
  },
  _writev: (own) => function _writev(chunks, callback) {
    const writev = (chunks, callback) =>
      ReflectApply(methodBelow(this, own, '_writev'), this, [chunks, callback]);
    const guard = this[kTakeover]?.guard;
    if (guard)
      guard.onChunks(chunks, callback, writev);
    else
      writev(chunks, callback);
  },
};

function descriptorOf(method) {
  return { __proto__: null, configurable: true, enumerable: false, value: method, writable: true };
}

// The properties that a guard gives to a socket that has no such methods of its own. They are
// the same for all sockets, so that a splice does not have to make them.
const guardDescriptors = { __proto__: null };
for (const name in guardMakers)
  guardDescriptors[name] = descriptorOf(guardMakers[name]());

// Keeps JavaScript from writing to a socket while a splice does. What JavaScript has
// written before the splice goes out before the bytes of the splice; what JavaScript writes
// after stop(), or, without stop(), after giveBack(), goes out behind them. While it is guarded
// the socket has write(), end(), _write() and _writev() of its own: those of the prototypes
// belong to all sockets.
class WriteGuard {
  #socket;
  #writer = null;  // The Writer that the socket is guarded for.
  #marks = 0;      // How many chunks of the guard the Writable has yet to write.
  #isStopped = false;  // The Writer has stopped.
  // Once the Writer has stopped: the mark behind which the Writable waits for what the Writer
  // still sends, and once the Writable has come to that mark, how the Writable goes on.
  #hold = null;
  #hasOuter = false;  // write() and end() of the socket are those of the guard.
  #hasInner = false;  // _write() and _writev() of the socket are those of the guard.
  // For each method that the socket had of its own: the descriptor of the property, and
  // the method that has replaced it.
  #replaced = null;

  constructor(socket) {
    this.#socket = socket;
  }

  // Guards the socket. Returns true, or false if JavaScript has written something
  // before that is still on its way; `onFlushed` is called when that is written.
  take(writer, onFlushed) {
    this.#writer = writer;
    if (!this.#hasOuter) {
      this.#hasOuter = true;
      this.#install('write');
      this.#install('end');
    }
    if (!this.#hasInner) {
      this.#hasInner = true;
      this.#install('_write');
      this.#install('_writev');
    }
    const { length, corked, writing } = this.#socket._writableState;
    if (length === 0 && corked === 0 && !writing)
      return true;
    this.#mark(0, (callback) => callback(), (err) => { if (!err) onFlushed(); });
    return false;
  }

  // Lets JavaScript write again, although the splice still sends what it has read: what
  // JavaScript writes waits for giveBack(). If a method that the user has kept has put
  // chunks into the Writable of a flushed Writer, the guard goes on as before, since those
  // chunks are in front and must not be sent among the bytes of the splice.
  stop(writer) {
    const { _writableState: state } = this.#socket;
    const isPast = writer.isFlushed && state.length > 0;
    if (this.#writer !== writer || this.#isStopped || isPast)
      return;
    this.#isStopped = true;
    if (!this.#canWrite)
      return;
    const hold = { chunk: null, goOn: null };
    hold.chunk = this.#markUncorked(0, (callback) => { hold.goOn = callback; });
    this.#hold = hold;
  }

  // Whether what JavaScript writes from now on can be sent. If it cannot, it need not wait for
  // the bytes of the splice.
  get #canWrite() {
    const { destroyed, writableEnded, _writableState: state } = this.#socket;
    return !destroyed && !writableEnded && !state.errored;
  }

  // Undoes take(). The splice has written `unflushed` bytes that are still on their
  // way: the next write of JavaScript waits for them.
  giveBack(writer, unflushed) {
    if (this.#writer !== writer)
      return;
    const hold = this.#hold;
    this.#writer = this.#hold = null;
    this.#isStopped = false;
    if (hold !== null)
      this.#endHold(hold, unflushed);
    else if (unflushed > 0 && this.#canWrite)
      this.#markUncorked(unflushed, this.#flusher());
    if (this.#socket.destroyed)
      this.#marks = 0;
    this.#remove();
  }

  // Lets the Writable go on when the unflushed bytes are written, which count as bytes of
  // the mark. A Writable that is destroyed goes on, too, and calls all of its chunks back.
  #endHold({ chunk, goOn }, unflushed) {
    const state = this.#socket._writableState;
    const { _handle: handle } = this.#socket;
    const turn = unflushed > 0 ? this.#flusher() : (callback) => {
      if (isSameConnection(this.#socket, handle))
        callback();
    };
    if (goOn !== null)
      state.writelen += unflushed;
    // While a Writable writes a buffered chunk, its buffer has a null in the place of the chunk.
    // The null stays there if a _write() of the user's throws.
    else if (ArrayPrototypeSome(state.getBuffer(), (each) => each?.chunk === chunk))
      setLength(chunk, unflushed);
    else
      unflushed = 0;  // The mark is being written as a chunk, or has been: it counts as empty.
    state.length += unflushed;
    if (unflushed > 0)
      state.needDrain ||= state.length >= state.highWaterMark;
    // The callbacks and the 'drain' of the user do not run inside of this.
    if (goOn !== null)
      process.nextTick(turn, goOn);
    else
      chunk[kTurn] &&= turn;
  }

  // Returns a function that calls back once the ciphertext of this connection is written.
  #flusher() {
    const { _handle: handle } = this.#socket;
    return (callback) => flush(this.#socket, handle, callback);
  }

  // Throws if JavaScript must not write.
  check() {
    if (this.#writer !== null && !this.#isStopped)
      throw new ERR_INVALID_STATE('A splice is writing to the socket');
  }

  // The Writable has come to a chunk. Returns false if the chunk is to be written.
  onChunk(chunk, callback) {
    const turn = chunk[kTurn];
    if (turn !== undefined) {
      chunk[kTurn] = null;
      this.#unmark();
      turn(callback);
      return true;
    }
    if (!this.#isRefusing) {
      this.#writer?.splice[kOnWrite](this.#socket);
      return false;
    }
    if (isEmpty(chunk))
      return this.#onEmpty(callback);
    this.#refuse(callback);
    return true;
  }

  // The Writable has come to several chunks. `writev` writes those that are to be
  // written.
  onChunks(chunks, callback, writev) {
    const { length, allBuffers } = chunks;
    const part = (from, to) => {
      const part = ArrayPrototypeSlice(chunks, from, to);
      part.allBuffers = allBuffers;
      return part;
    };
    const goOnAt = (index) => (err) => {
      if (err || index === length)
        callback(err);
      else
        this.onChunks(part(index), callback, writev);
    };
    const mark = ArrayPrototypeFindIndex(chunks, ({ chunk }) => chunk[kTurn] !== undefined);
    if (mark === 0) {
      this.onChunk(chunks[0].chunk, goOnAt(1));
    } else if (mark > 0 || !this.#isRefusing) {
      this.#writer?.splice[kOnWrite](this.#socket);
      if (mark > 0)
        writev(part(0, mark), goOnAt(mark));
      else
        writev(chunks, callback);
    } else if (!ArrayPrototypeEvery(chunks, ({ chunk }) => isEmpty(chunk))) {
      this.#refuse(callback);
    } else if (!this.#onEmpty(callback)) {
      writev(chunks, callback);
    }
  }

  // Invariant: all that JavaScript wrote before the splice is in front of the last
  // mark. So chunks behind it are refused, and chunks in front of it are not.
  get #isRefusing() {
    return this.#writer !== null && !this.#isStopped && this.#marks === 0;
  }

  #onEmpty(callback) {
    if (!this.#writer.splice[kOnEmptyWrite](this.#socket))
      return false;
    callback();
    return true;
  }

  // Refuses what was written by a write() that the user got before the socket was
  // guarded. If that has not returned yet, it throws, and the Writable is as if it had
  // not been called.
  #refuse(callback) {
    const state = this.#socket._writableState;
    if (state.writing && state.sync && !state.bufferProcessing) {
      state.pendingcb--;
      state.length -= state.writelen;
      state.writelen = 0;
      state.writecb = null;
      state.writing = false;
      state.sync = false;
      // Unless 'drain' is about to be emitted for an earlier chunk.
      state.needDrain &&= state.pendingcb > 0;
      this.check();
    }
    try {
      this.check();
    } catch (err) {
      callback(err);
    }
  }

  // Writes a chunk that is empty but counts as `length` bytes, and returns it. When the
  // Writable has come to it, `turn` is called in place of _write().
  #mark(length, turn, callback) {
    const chunk = new FastBuffer();
    setLength(chunk, length);
    chunk[kTurn] = turn;
    this.#marks++;
    // The write() of the socket or of a prototype may be the user's, and its _write() may
    // throw.
    guarded(() => FunctionPrototypeCall(writableWrite, this.#socket, chunk, (err) => {
      // A Writable that is destroyed does not come to its chunks, and a _write() that the user
      // has set meanwhile takes the mark for an ordinary chunk.
      if (chunk[kTurn] !== null)
        this.#unmark();
      callback?.(err);
    }));
    return chunk;
  }

  #unmark() {
    this.#marks = MathMax(this.#marks - 1, 0);
    if (this.#writer === null)
      this.#remove();
  }

  // As #mark(), for bytes that the splice has written already: a cork() does not hold them back.
  #markUncorked(length, turn) {
    const socket = this.#socket;
    const { corked } = socket._writableState;
    for (let i = 0; i < corked; i++)
      guarded(() => socket.uncork());
    const chunk = this.#mark(length, turn);
    for (let i = 0; i < corked; i++)
      socket.cork();
    return chunk;
  }

  #install(name) {
    const own = ObjectGetOwnPropertyDescriptor(this.#socket, name);
    // A Writable without _writev() calls _write() for each chunk.
    if (typeof methodBelow(this.#socket, own, name) !== 'function')
      return;
    let descriptor = guardDescriptors[name];
    if (own !== undefined) {
      if (!own.configurable)
        return;
      const method = guardMakers[name](own);
      this.#replaced ??= { __proto__: null };
      this.#replaced[name] = { own, method };
      descriptor = descriptorOf(method);
    }
    ObjectDefineProperty(this.#socket, name, descriptor);
  }

  // Takes the methods off the socket; _write() and _writev() only when no mark is left,
  // since marks must not reach the handle of the socket. V8 makes a slow object of one
  // that loses another property than its newest, so that the methods go in the reverse
  // order of their coming.
  #remove() {
    const removesInner = this.#hasInner && this.#marks === 0;
    if (removesInner) {
      this.#hasInner = false;
      this.#uninstall('_writev');
      this.#uninstall('_write');
    }
    if (this.#hasOuter) {
      this.#hasOuter = false;
      this.#uninstall('end');
      this.#uninstall('write');
    }
    if (removesInner) {
      const takeover = this.#socket[kTakeover];
      takeover.guard = null;
      takeover.removeIfUnused();
    }
  }

  #uninstall(name) {
    const replaced = this.#replaced?.[name];
    if (replaced !== undefined)
      delete this.#replaced[name];
    const now = ObjectGetOwnPropertyDescriptor(this.#socket, name);
    if (now === undefined || !now.configurable)
      return;
    if (now.value !== (replaced?.method ?? guardDescriptors[name].value)) {
      // The user has set another method meanwhile. It stays, and does not show that
      // there was one of the guard.
      now.enumerable = replaced?.own.enumerable ?? true;
      ObjectDefineProperty(this.#socket, name, { __proto__: null, ...now });
    } else if (replaced !== undefined) {
      ObjectDefineProperty(this.#socket, name, { __proto__: null, ...replaced.own });
    } else {
      delete this.#socket[name];
    }
  }
}

// Writes to a socket in the place of JavaScript, from its construction on. When the
// socket is `isFlushed`, what JavaScript has written before is written; if that comes
// later, `onFlushed` is called.
class Writer {
  splice;
  isFlushed;
  hasHeldFinal = false;  // The _final() of the socket has waited for the splice.
  #socket;

  constructor(socket, splice, onFlushed) {
    this.#socket = socket;
    this.splice = splice;
    const takeover = Takeover.of(socket);
    takeover.writer = this;
    takeover.guard ??= new WriteGuard(socket);
    this.isFlushed = takeover.guard.take(this, () => {
      this.isFlushed = true;
      onFlushed();
    });
  }

  // The splice stops: what JavaScript writes from now on waits for unguard().
  stop() {
    this.#socket[kTakeover]?.guard?.stop(this);
  }

  // Lets JavaScript write again, but no other splice yet. `unflushed` bytes that the
  // splice has written are still on their way.
  unguard(unflushed = 0) {
    this.#socket[kTakeover]?.guard?.giveBack(this, unflushed);
  }

  // Lets other splices write. Returns false if that was done before.
  detach() {
    return this.#socket[kTakeover]?.detach(this);
  }
}

// Reads a socket in the place of JavaScript, from take() on.
class Reader {
  splice;
  hasTaken = false;
  hasReadEnd = false;  // The splice has read the end of the socket from its handle.
  #socket;
  // JavaScript has read the handle, or is to see its end.
  isRead = true;
  // JavaScript has read the end of the socket, but not the bytes before it, which the
  // splice has taken.
  #holdsEnd = false;

  constructor(socket, splice) {
    this.#socket = socket;
    this.splice = splice;
    Takeover.of(socket).reader = this;
  }

  // Stops JavaScript from reading. Returns the `head`, if there is one, and behind it what
  // JavaScript has read and not consumed. The caller owns these chunks.
  take(head) {
    const { _handle: handle, _readableState: state } = this.#socket;
    this.hasTaken = true;
    // The splice of a TLSSocket reads what is below its handle.
    if (!this.#socket.encrypted) {
      this.isRead = handle.reading;
      handle.readStop();
      handle.readStart = handle.readStop = ignore;
    }
    // JavaScript leaves a handle alone that it believes to be read, unless there is an
    // `onread` buffer: then pause() and resume() act on the handle.
    handle.reading ||= !this.#socket[kBuffer];
    // Readable.read() would emit 'data'.
    const chunks = ArrayPrototypeSlice(state.buffer, state.bufferIndex);
    // JavaScript does not go on reading when the Readable is full.
    this.isRead ||= chunks.length > 0;
    state.buffer.length = 0;
    state.bufferIndex = 0;
    state.length = 0;
    const takeover = Takeover.of(this.#socket);
    if (takeover.rest !== null)
      ArrayPrototypePush(chunks, takeover.rest);
    takeover.rest = null;
    if (head !== undefined)
      ArrayPrototypeUnshift(chunks, head);
    // This is the state after a read() that has taken the last byte: 'readable' is
    // emitted for the next byte, although nobody has called read().
    state.emittedReadable = false;
    state.needReadable = true;
    if (state.ended && !state.endEmitted && chunks.length > 0) {
      // A read() may have queued 'end', which is not emitted then.
      state.ended = false;
      this.#holdsEnd = true;
    }
    return chunks;
  }

  // Lets JavaScript see the end of the socket if take() has found one.
  giveEnd() {
    if (!this.#holdsEnd)
      return;
    this.#holdsEnd = false;
    // A reader has started the next splice, and given it some of the bytes before the end.
    const next = this.#socket[kTakeover]?.reader;
    if (next?.hasTaken && next !== this) {
      next.#holdsEnd = true;
      return;
    }
    guarded(() => {
      this.#socket.push(null);
      this.#socket.read(0);
    });
  }

  // Whether no other splice can read.
  get isAttached() {
    return this.#socket[kTakeover]?.reader === this;
  }

  // Lets other splices read. Returns false if that was done before.
  detach() {
    return this.#socket[kTakeover]?.detach(this);
  }

  // Lets JavaScript read again: first `bytes`, if there are any. Its readers are called
  // at once, since they may start the next splice, which takes what they have not
  // consumed. After that `beforeReading` is called, and then the handle is read.
  giveBack(bytes, beforeReading) {
    const socket = this.#socket;
    const { _handle: handle, _readableState: state } = socket;
    if (socket.destroyed)
      return;
    // These are bytes of a `head`: nobody expects any after the end of the socket.
    if (socket.readableEnded)
      bytes = undefined;
    let reading = false;  // Whether JavaScript wants to read.
    if (handle) {
      ({ reading } = handle);
      handle.reading = false;
    }
    // A server with `pauseOnConnect` has made a socket that nobody has read yet.
    if (!this.isRead && !state.reading && !socket.readableFlowing)
      reading = false;
    const hasCallback = handle && socket[kBuffer];
    if (hasCallback && bytes !== undefined)
      reading = this.#giveToCallback(bytes, reading);
    if (handle && !socket[kTakeover]?.reader?.hasTaken) {
      delete handle.readStart;
      delete handle.readStop;
    }
    if (!hasCallback && bytes !== undefined)
      guarded(() => socket.push(bytes));
    this.giveEnd();
    beforeReading();
    if (socket.destroyed || socket[kTakeover]?.reader?.hasTaken)
      return;
    // The handle need not be read again for an end that the splice has read, and a terminal
    // gives an end only once. JavaScript that does not read now sees the end when it reads.
    if (this.hasReadEnd)
      guarded(() => socket.push(null));
    if (reading)
      this.#resume();
  }

  // Gives JavaScript, which has not stopped reading, bytes that come before what it has.
  unshift(bytes) {
    const socket = this.#socket;
    const { _handle: handle } = socket;
    if (socket.destroyed || socket.readableEnded)
      return;
    if (handle && socket[kBuffer]) {
      handle.reading = this.#giveToCallback(bytes, handle.reading);
    } else {
      guarded(() => socket.unshift(bytes));
    }
  }

  // Hands bytes to the callback of the `onread` option of net.connect() as if they had just
  // arrived: the handle copies to its buffer, and calls onStreamRead() in
  // internal/stream_base_commons. The callback may start the next splice, which takes the
  // rest. `reading`: whether JavaScript wants to read, which pause() and resume() in the
  // callback change. Returns whether it still does.
  #giveToCallback(bytes, reading) {
    const socket = this.#socket;
    const { _handle: handle } = socket;
    handle.reading = reading;
    const takeover = Takeover.of(socket);
    takeover.rest = bytes;
    // In a tick that runs at the end of the callback, the handle has yet to learn of the
    // buffer that follows. The socket has `true` in the place of a buffer if it has got none.
    if (socket[kBuffer] !== true)
      handle.useUserBuffer(socket[kBuffer]);
    while (takeover.rest !== null && !socket.destroyed) {
      const { rest } = takeover;
      const chunk = rest.subarray(0, socket[kBuffer].length);
      takeover.rest = chunk.length < rest.length ? rest.subarray(chunk.length) : null;
      let taken = chunk.length;
      guarded(() => { taken = NativeSplice.emitRead(handle, chunk); });
      if (taken === 0)
        guarded(() => socket.destroy(new ErrnoException(UV_ENOBUFS, 'read')));
      else if (taken < chunk.length)
        takeover.rest = rest.subarray(taken);
    }
    takeover.rest = null;
    const isReading = handle.reading;
    if (!takeover.reader?.hasTaken)
      handle.reading = false;
    takeover.removeIfUnused();
    return isReading;
  }

  #resume() {
    const socket = this.#socket;
    const handle = socket._handle;
    if (socket.destroyed || !handle || socket.readableEnded)
      return;
    // This emits 'end' if nothing else is left, and reads on if there is room.
    guarded(() => socket.read(0));
    // The Readable does not ask again for what it has asked for before the splice.
    if (socket._handle === handle && !handle.reading &&
        socket._readableState.reading && !socket._readableState.ended) {
      handle.reading = true;
      const err = handle.readStart();
      if (err)
        guarded(() => socket.destroy(new ErrnoException(err, 'read')));
    }
  }
}

module.exports = {
  Reader, Takeover, Writer, end, guarded,
  kLastMove, kOnClose, kOnCloseBelow, kOnConnect, kOnDestroy, kOnEmptyWrite, kOnFinal, kOnReadEnd,
  kOnSecure, kOnTLSError, kOnWrite,
};
