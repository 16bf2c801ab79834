'use strict';

// tlsSocket.spliceTo() and tlsSocket.pipeToNative(). The bytes move in
// src/crypto/crypto_tls_splice.cc and deps/tls_splice; here is who may splice
// what, how a socket is handed over and given back, and how it ends.

const {
  ArrayPrototypeEvery,
  ArrayPrototypeFindIndex,
  ArrayPrototypeSlice,
  Error,
  Float64Array,
  FunctionPrototypeCall,
  MathMax,
  MathMin,
  ObjectIsExtensible,
  ObjectDefineProperty,
  ObjectGetOwnPropertyDescriptor,
  ObjectGetPrototypeOf,
  PromisePrototypeThen,
  PromiseWithResolvers,
  ReflectApply,
  ReflectDefineProperty,
  SafeSet,
  SafeWeakSet,
  Symbol,
  SymbolAsyncDispose,
  SymbolDispose,
  TypedArrayPrototypeSet,
} = primordials;

const EventEmitter = require('events');
const { closeSync } = require('fs');
const {
  Stream,
  Writable: { prototype: { write: writableWrite } },
} = require('stream');
const net = require('net');
const { Buffer } = require('buffer');
const { FastBuffer } = require('internal/buffer');
const { clearTimeout, setImmediate, setTimeout } = require('timers');
const { getValidatedFd } = require('internal/fs/utils');
const {
  kBeforeDestroy,
  kBeforeFinal,
  kOnIdle,
  kSplices,
  kTLSError,
} = require('internal/net');
const { kTimeout } = require('internal/timers');
const { isUint8Array } = require('internal/util/types');
const { addAbortListener } = require('internal/events/abort_listener');
const { emitExperimentalWarning, kEmptyObject } = require('internal/util');
const { inspect } = require('internal/util/inspect');
const {
  kBoundSession,
  kBuffer,
  kBufferCb,
  kBufferGen,
  kSession,
} = require('internal/stream_base_commons');
const {
  ErrnoException,
  codes: {
    ERR_FEATURE_UNAVAILABLE_ON_PLATFORM,
    ERR_ILLEGAL_CONSTRUCTOR,
    ERR_INTERNAL_ASSERTION,
    ERR_INVALID_ARG_TYPE,
    ERR_INVALID_ARG_VALUE,
    ERR_INVALID_STATE,
    ERR_INVALID_THIS,
    ERR_SOCKET_CLOSED,
    ERR_STREAM_PREMATURE_CLOSE,
    ERR_TLS_HANDSHAKE_TIMEOUT,
    ERR_TLS_SPLICE_FRAMING,
  },
} = require('internal/errors');
const {
  isInt32,
  validateAbortSignal,
  validateBoolean,
  validateInteger,
  validateObject,
  validateOneOf,
  validateString,
} = require('internal/validators');
const {
  // On Windows, for one, there is neither this nor the constants.
  TLSSplice: NativeSplice,
  TLSWrap,
  spliceConstants: {
    TLS_SPLICE_DECRYPT: kIn,
    TLS_SPLICE_ENCRYPT: kOut,
    TLS_SPLICE_FD_NONE,
    TLS_SPLICE_EACCMODE,
    TLS_SPLICE_ENOTSUP,
    TLS_SPLICE_EFRAMING,
    TLS_SPLICE_EVNETHDR,
    TLS_SPLICE_FRAMING_AUTO,
    TLS_SPLICE_FRAMING_RAW,
    TLS_SPLICE_FRAMING_IP,
    TLS_SPLICE_FRAMING_U16BE,
    kEBADFD,
    kInOver,
    kOutOver,
    kInStopped,
    kOutStopped,
    kFailed,
    kTLSFailed,
    kTLSFailing,
    kBusy,
    kTransferring,
    kEndpointClosed,
    kWriting,
    kWantsTLS,
    kBytesIn,
    kBytesOut,
    kStallsIn,
    kStallsOut,
    kPeakBufferedIn,
    kPeakBufferedOut,
    kPacketsIn,
    kPacketsOut,
    kLargestPacketIn,
    kLargestPacketOut,
    kDropsIn,
    kDropsOut,
    kDropsEINVAL,
    kDropsEMSGSIZE,
    kDropsECONNREFUSED,
    kDropsEIO,
    kDropsENOBUFS,
    kCloseNotify,
    kLastActivity,
    kStatsCount,
  } = kEmptyObject,
} = internalBinding('tls_wrap');
const { Pipe } = internalBinding('pipe_wrap');
const { WriteWrap } = internalBinding('stream_wrap');
const { TCP } = internalBinding('tcp_wrap');
const { TTY } = internalBinding('tty_wrap');
const { getLibuvNow } = internalBinding('timers');
const { UV_ENOBUFS, UV_ETIMEDOUT } = internalBinding('uv');

const kDirections = { __proto__: null, in: kIn, out: kOut, duplex: kIn | kOut };
// As the TLSSocket at the other end sees it.
const kMirrored = { __proto__: null, in: 'out', out: 'in', duplex: 'duplex' };
const kFramings = {
  __proto__: null,
  auto: TLS_SPLICE_FRAMING_AUTO,
  raw: TLS_SPLICE_FRAMING_RAW,
  ip: TLS_SPLICE_FRAMING_IP,
  u16be: TLS_SPLICE_FRAMING_U16BE,
};
const kDefaultHighWaterMark = 256 * 1024;

// How long the end of a splice waits for what may never come, in milliseconds.
const kStopTimeout = 2000;

// Filled by the native side for whoever asks. One for all, since there can be
// thousands of splices that nothing is asked of.
const counters = new Float64Array(kStatsCount);

// On a TLSSocket: what has taken over a direction.
const kSpliceIn = Symbol('kSpliceIn');
const kSpliceOut = Symbol('kSpliceOut');
// On an endpoint: what reads it, and what writes to it.
const kReader = Symbol('kReader');
const kWriter = Symbol('kWriter');
// On a socket: its WriteGuard, while it has one.
const kGuard = Symbol('kGuard');
// On a chunk that a WriteGuard has written: what is done when it is its turn.
const kTurn = Symbol('kTurn');
// On a TLSSocket: a timer for the rest of its idle time.
const kIdleTimer = Symbol('kIdleTimer');
// What is below a TLSSocket: the handles of sockets, and streams that JavaScript
// reads and writes.
const below = new SafeWeakSet();
// Only spliceTo() makes a TLSSplice.
const kCreate = Symbol('kCreate');
// On a TLSSplice: what its sockets tell and ask it.
const kLastMove = Symbol('kLastMove');
const kOnClose = Symbol('kOnClose');
const kOnDestroy = Symbol('kOnDestroy');
const kOnEmptyWrite = Symbol('kOnEmptyWrite');
const kOnFinal = Symbol('kOnFinal');
const kOnSecure = Symbol('kOnSecure');
const kOnTLSError = Symbol('kOnTLSError');
const kRun = Symbol('kRun');

function noop() {}

function ignore() {
  return 0;
}

// Takes what a socket has read and not passed on. Readable.read() would emit
// 'data' for it.
function takeReadable(socket) {
  const state = socket._readableState;
  const chunks = ArrayPrototypeSlice(state.buffer, state.bufferIndex);
  state.buffer.length = 0;
  state.bufferIndex = 0;
  state.length = 0;
  // As read() leaves it when that has taken the last: 'readable' is emitted for
  // what comes next, although nobody has read what it was emitted for last.
  state.emittedReadable = false;
  state.needReadable = true;
  return chunks;
}

// Says on an error which side of a splice has failed, if it can be said there: it
// may be anything that a socket was destroyed with.
function setSide(error, side) {
  if (typeof error !== 'object' || error === null)
    return;
  try {
    ReflectDefineProperty(error, 'side', {
      __proto__: null,
      configurable: true,
      enumerable: true,
      value: side,
      writable: true,
    });
  } catch {
    // A proxy may throw.
  }
}

// Of the endpoint. A device can have an error that libuv does not know.
function errorOf(err, syscall) {
  if (err !== kEBADFD)
    return new ErrnoException(err, syscall);
  const error =
    new Error(`EBADFD: file descriptor in bad state, ${syscall}`);
  error.errno = err;
  error.code = 'EBADFD';
  error.syscall = syscall;
  return error;
}

function isEmpty(chunk) {
  return chunk === '' || chunk?.length === 0;
}

// The method that a guard stands in front of: by the property descriptor of what
// was the socket's own, or else what its prototypes have now.
function methodBelow(socket, own, name) {
  if (own === undefined)
    return ObjectGetPrototypeOf(socket)[name];
  return own.get ? FunctionPrototypeCall(own.get, socket) : own.value;
}

// The methods of a guarded socket. They can be called after the splice, too, by
// whoever has kept one.
const guardMakers = {
  __proto__: null,
  write: (own) => function write(chunk, ...args) {
    // Empty writes only drive the state of TLS, see renegotiate().
    if (!isEmpty(chunk))
      this[kGuard]?.check();
    return ReflectApply(methodBelow(this, own, 'write'), this, [chunk, ...args]);
  },
  end: (own) => function end(chunk, ...args) {
    if (chunk != null && typeof chunk !== 'function' && !isEmpty(chunk))
      this[kGuard]?.check();
    return ReflectApply(methodBelow(this, own, 'end'), this, [chunk, ...args]);
  },
  _write: (own) => function _write(chunk, encoding, callback) {
    if (!this[kGuard]?.onChunk(chunk, callback)) {
      ReflectApply(methodBelow(this, own, '_write'), this,
                   [chunk, encoding, callback]);
    }
  },
  _writev: (own) => function _writev(chunks, callback) {
    const writev = (chunks, callback) =>
      ReflectApply(methodBelow(this, own, '_writev'), this, [chunks, callback]);
    const { [kGuard]: guard } = this;
    if (guard)
      guard.onChunks(chunks, callback, writev);
    else
      writev(chunks, callback);
  },
};

// Of a socket that has none of its own.
const guardMethods = {
  __proto__: null,
  write: guardMakers.write(),
  end: guardMakers.end(),
  _write: guardMakers._write(),
  _writev: guardMakers._writev(),
};

// Keeps JS from writing to a socket while a splice does, and the order of the
// splice's bytes and of those that JS has written before. The methods are the
// socket's own for that time: those of the prototypes are everybody's.
class WriteGuard {
  #socket;
  #splice = null;  // The one that writes.
  #queued = 0;     // How many chunks of ours the Writable has yet to write.
  #hasOuter = false;  // write() and end() are the guard's.
  #hasInner = false;  // _write() and _writev() are.
  // Where the socket had one itself: its property descriptor, and our method.
  #replaced = null;

  constructor(socket) {
    this.#socket = socket;
  }

  // Guards the socket for a splice. Returns true, or false if JS has written
  // something before; `onFlushed` is called when that has gone.
  static take(socket, splice, onFlushed) {
    socket[kGuard] ??= new WriteGuard(socket);
    return socket[kGuard].#take(splice, onFlushed);
  }

  #take(splice, onFlushed) {
    this.#splice = splice;
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
    this.#queue(0, (callback) => callback(), (err) => { if (!err) onFlushed(); });
    return false;
  }

  // The end of what take() began. `unflushed` bytes have been written, but not by
  // JS, and are still on their way: the next write waits for them.
  release(splice, unflushed = 0) {
    if (this.#splice !== splice)
      return;
    this.#splice = null;
    const { destroyed, writableEnded, _writableState: state } = this.#socket;
    if (destroyed) {
      this.#queued = 0;
    } else if (unflushed > 0 && !writableEnded && !state.errored) {
      // They are not held back by cork() any more.
      const { corked } = state;
      for (let i = 0; i < corked; i++)
        this.#socket.uncork();
      this.#queue(unflushed, (callback) => flush(this.#socket, callback));
      for (let i = 0; i < corked; i++)
        this.#socket.cork();
    }
    this.#remove();
  }

  // JS wants to write.
  check() {
    if (this.#splice !== null)
      throw new ERR_INVALID_STATE('The socket is being written to by a splice');
  }

  // JS, or this guard, has written `chunk`, and it is its turn. Returns false if
  // it is to be written indeed.
  onChunk(chunk, callback) {
    const turn = chunk[kTurn];
    if (turn !== undefined) {
      this.#queued--;
      if (this.#splice === null)
        this.#remove();
      turn(callback);
      return true;
    }
    if (!this.#isRefusing)
      return false;
    if (isEmpty(chunk))
      return this.#onEmpty(callback);
    this.#refuse(callback);
    return true;
  }

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
    const ours =
      ArrayPrototypeFindIndex(chunks, ({ chunk }) => chunk[kTurn] !== undefined);
    if (ours === 0) {
      this.onChunk(chunks[0].chunk, goOnAt(1));
    } else if (ours > 0) {
      writev(part(0, ours), goOnAt(ours));
    } else if (!this.#isRefusing) {
      writev(chunks, callback);
    } else if (!ArrayPrototypeEvery(chunks, ({ chunk }) => isEmpty(chunk))) {
      this.#refuse(callback);
    } else if (!this.#onEmpty(callback)) {
      writev(chunks, callback);
    }
  }

  // The last chunk of ours is behind everything that JS may have written.
  get #isRefusing() {
    return this.#splice !== null && this.#queued === 0;
  }

  #onEmpty(callback) {
    if (!this.#splice[kOnEmptyWrite](this.#socket))
      return false;
    callback();
    return true;
  }

  // A write() that was got hold of before the socket was guarded. It throws, as if
  // it had not been called, unless it has returned.
  #refuse(callback) {
    const state = this.#socket._writableState;
    if (state.writing && state.sync && !state.bufferProcessing) {
      state.pendingcb--;
      state.length -= state.writelen;
      state.writelen = 0;
      state.writecb = null;
      state.writing = false;
      state.sync = false;
      this.check();
    }
    try {
      this.check();
    } catch (err) {
      callback(err);
    }
  }

  #queue(length, turn, callback) {
    const chunk = new FastBuffer();
    ObjectDefineProperty(chunk, 'length', { __proto__: null, value: length });
    chunk[kTurn] = turn;
    this.#queued++;
    // What may have been put on the socket, or a prototype, is for JS's writes.
    FunctionPrototypeCall(writableWrite, this.#socket, chunk, callback);
  }

  #install(name) {
    const own = ObjectGetOwnPropertyDescriptor(this.#socket, name);
    let method = guardMethods[name];
    if (own !== undefined) {
      if (!own.configurable)
        return;
      method = guardMakers[name](own);
      this.#replaced ??= { __proto__: null };
      this.#replaced[name] = { own, method };
    }
    ObjectDefineProperty(this.#socket, name, {
      __proto__: null,
      configurable: true,
      enumerable: false,
      value: method,
      writable: true,
    });
  }

  // While there are chunks of ours, they must not reach the socket.
  #remove() {
    if (this.#hasOuter) {
      this.#hasOuter = false;
      this.#uninstall('end');
      this.#uninstall('write');
    }
    if (this.#hasInner && this.#queued === 0) {
      this.#hasInner = false;
      this.#uninstall('_writev');
      this.#uninstall('_write');
      this.#socket[kGuard] = undefined;
    }
  }

  #uninstall(name) {
    const replaced = this.#replaced?.[name];
    delete this.#replaced?.[name];
    const now = ObjectGetOwnPropertyDescriptor(this.#socket, name);
    if (now === undefined || !now.configurable)
      return;
    if (now.value !== (replaced?.method ?? guardMethods[name])) {
      // Somebody has set another one, which is not to know of this.
      now.enumerable = replaced?.own.enumerable ?? true;
      ObjectDefineProperty(this.#socket, name, { __proto__: null, ...now });
    } else if (replaced !== undefined) {
      ObjectDefineProperty(this.#socket, name, { __proto__: null, ...replaced.own });
    } else {
      delete this.#socket[name];
    }
  }
}

// Calls back once all ciphertext is written to the stream below. JS's own writes
// wait for that, and so the shutdown after them does not have to.
function flush(socket, callback) {
  const handle = socket._handle;
  const done = (status, err) => {
    if (status === 0 && !socket.destroyed)
      socket._unrefTimer();
    callback(status < 0 ? new ErrnoException(status, 'write', err) : null);
  };
  const req = new WriteWrap();
  req.handle = handle;
  req.oncomplete = (status, handle, err) => done(status, err);
  const status = handle ? NativeSplice.flush(handle, req) : 0;
  if (status <= 0)
    done(status);
}

// Calls what calls listeners. One that throws is nothing to the splice.
function guarded(callback) {
  try {
    return callback();
  } catch (err) {
    process.nextTick(() => { throw err; });
  }
}

// The splices that have to do with a socket. Its own methods tell them what happens
// to it, since anybody can remove a listener.
class Watchers {
  #splices = new SafeSet();

  add(splice) {
    this.#splices.add(splice);
  }

  // Returns whether there is none any more.
  delete(splice) {
    this.#splices.delete(splice);
    return this.#splices.size === 0;
  }

  #tell(name, ...args) {
    // The end of one may be the start of the next.
    for (const splice of new SafeSet(this.#splices))
      guarded(() => splice[name](...args));
  }

  // 'close' is about to be emitted.
  onClose(socket) {
    this.#tell(kOnClose, socket);
  }

  onDestroy(socket, err) {
    this.#tell(kOnDestroy, socket, err);
  }

  // 'secure' has been emitted. `checks`: by a client or server that looks at the
  // certificate then.
  onSecure(socket, checks) {
    const unverified = checks && socket.secureConnecting &&
                       socket._requestCert && socket._rejectUnauthorized;
    this.#tell(kOnSecure, socket, unverified);
  }

  onTLSError(socket, err) {
    this.#tell(kOnTLSError, socket, err);
  }
}

function watch(socket, splice) {
  socket[kSplices] ??= new Watchers();
  socket[kSplices].add(splice);
}

function unwatch(socket, splice) {
  if (socket[kSplices]?.delete(splice))
    socket[kSplices] = undefined;
}

// Calls `callback` with each TLSSocket that the socket runs over, and the splice.
function forEachBelow(socket, callback, splice) {
  for (let below = socket._parent; below?.encrypted; below = below._parent)
    callback(below, splice);
}

function concat(chunks) {
  return chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
}

// Hands bytes to a socket's readers as if they had just arrived. Returns whether
// it is to be read on.
function giveToReader(socket, chunk) {
  if (!socket[kBuffer]) {
    guarded(() => socket.push(chunk));
    return true;
  }
  // The `onread` option of net.connect(), see onStreamRead() in
  // internal/stream_base_commons.
  let more = true;
  for (let offset = 0; offset < chunk.length && !socket.destroyed;) {
    const buffer = socket[kBuffer];
    let n = chunk.length - offset;
    // Otherwise nobody has given one yet.
    if (isUint8Array(buffer)) {
      n = MathMin(buffer.length, n);
      if (n === 0) {
        socket.destroy(new ErrnoException(UV_ENOBUFS, 'read'));
        break;
      }
      TypedArrayPrototypeSet(buffer, chunk.subarray(offset, offset + n));
    }
    offset += n;
    guarded(() => {
      if (socket[kBufferCb](n, buffer) === false)
        more = false;
      const next = socket[kBufferGen]?.();
      if (isUint8Array(next))
        socket[kBuffer] = next;
    });
  }
  return more;
}

// JS believes that the handle is being read, and so leaves it alone. Not if it has
// an `onread` buffer: then pause() and resume() act on the handle.
function pretendReading(socket) {
  socket._handle.reading ||= !socket[kBuffer];
}

function stopReading(socket) {
  const handle = socket._handle;
  handle.readStop();
  handle.readStart = handle.readStop = ignore;
  pretendReading(socket);
}

// Whether JS wants to go on: the opposite of pretendReading().
function stopPretending(socket) {
  const handle = socket._handle;
  const { reading } = handle;
  delete handle.readStart;
  delete handle.readStop;
  handle.reading = false;
  return reading;
}

function resumeReading(socket) {
  const handle = socket._handle;
  if (socket.destroyed || !handle || socket.readableEnded)
    return;
  // Emits 'end' if that is all there is left, and reads on if there is room.
  guarded(() => socket.read(0));
  // Unless it has asked for more before the splice, and still waits for it.
  if (socket._handle === handle && !handle.reading &&
      socket._readableState.reading && !socket._readableState.ended) {
    handle.reading = true;
    const err = handle.readStart();
    if (err)
      socket.destroy(new ErrnoException(err, 'read'));
  }
}

/**
 * One splice of a TLSSocket to an endpoint. Emits 'error' at most once, and
 * then 'close' once, with the stats.
 */
class TLSSplice extends EventEmitter {
  #socket;
  #endpoint = null;  // The net.Socket of the `stream` option, or null.
  #peer = null;      // If that is a TLSSocket, the splice of that.
  #parent = null;    // Of such a one, the splice that it belongs to.
  #native;
  #directions;
  #autoClose;
  #end;
  #signal;
  #state = 'idle';
  #reason = null;
  #error = null;
  #side = null;      // Where that has happened: 'tls' or 'endpoint'.
  #counters = null;  // Of a splice whose native side may be gone.
  #isGivenBack = false;
  #isOver = false;   // 'close' has been emitted, or is about to be.
  #outcome = null;
  #stopped = null;
  #quiet = false;    // Somebody looks at the promise: no uncaught 'error'.
  #inBegun = false;
  #outBegun = false;
  #outWaits = false;
  #outFlushed = false;   // What JS had written to the socket has gone.
  #sinkFlushed = false;  // Likewise, to the endpoint.
  #endHeld = false;  // JS had read the end, but not what comes before it.
  #inOver = false;
  #outEnding = false;
  #outOver = false;
  #endpointChunks = null;  // What it had read; null when it is JS's to read.
  #endpointRead = false;   // JS was reading it.
  #endpointEndHeld = false;
  #endpointFailed = false;
  #endpointEnding = false;     // It is closed once it has written everything.
  #endpointDestroyed = false;  // Without waiting for that.
  #endpointClosed = false;
  #onFinal = null;
  #tlsError = null;
  #hasBegun = false;
  #unlisten = null;
  #stopTimer = null;
  #isLate = false;   // That has run out.

  constructor(token, socket, native, options) {
    if (token !== kCreate)
      throw new ERR_ILLEGAL_CONSTRUCTOR();
    super();
    this.#socket = socket;
    this.#native = native;
    this.#directions = kDirections[options.direction];
    this.#autoClose = options.autoClose;
    this.#end = options.end;
    this.#signal = options.signal;
    native.onchange = () => this.#update();
    const { stream } = options;
    if (stream?.encrypted) {
      const mirrored = {
        ...options,
        direction: kMirrored[options.direction],
        framing: 'raw',
        autoClose: false,
      };
      const peer = new TLSSplice(kCreate, stream, openNative(mirrored), {
        ...mirrored,
        stream: undefined,
        signal: undefined,
      });
      peer.#parent = this;
      peer.#quiet = true;
      native.join(peer.#native);
      this.#peer = peer;
    } else if (stream !== undefined) {
      this.#endpoint = stream;
    }
  }

  /**
   * @returns {'idle'|'running'|'stopping'|'closed'}
   */
  get state() {
    if (this.#state !== 'closing')
      return this.#state;
    // Everything is given back. An endpoint that is not has yet to be closed.
    return this.#autoClose && this.#stream ? 'stopping' : 'closed';
  }

  // Whether all is given back, or about to be.
  get #isClosing() {
    return this.#state === 'closing' || this.#state === 'closed';
  }

  /**
   * The error with which the splice has failed, or null.
   * @type {Error|null}
   */
  get errored() {
    return this.#error;
  }

  #setOutcome(reason, error, side) {
    this.#reason = reason;
    if (error) {
      this.#error = error;
      this.#side = side;
      setSide(error, side);
    }
  }

  /**
   * A promise for the stats at the end; rejects with what 'error' is emitted
   * with. Never reported as an unhandled rejection.
   * @type {Promise<object>}
   */
  get finished() {
    this.#quiet = true;
    return this.#promise();
  }

  #promise() {
    if (this.#outcome === null) {
      this.#outcome = PromiseWithResolvers();
      // Nobody has to look at it.
      PromisePrototypeThen(this.#outcome.promise, undefined, noop);
      if (this.#isOver)
        this.#settle();
    }
    return this.#outcome.promise;
  }

  #settle() {
    if (this.#error)
      this.#outcome.reject(this.#error);
    else
      this.#outcome.resolve(this.stats);
  }

  #readStats() {
    if (this.#counters !== null)
      TypedArrayPrototypeSet(counters, this.#counters);
    // Once it is over it stays as it is.
    if (!this.#isOver)
      this.#native.readStats(counters);
    return counters;
  }

  /**
   * Counters, in bytes unless said otherwise; up to date at each access.
   * @type {object}
   */
  get stats() {
    const values = this.#readStats();
    return {
      bytesIn: values[kBytesIn],
      bytesOut: values[kBytesOut],
      packetsIn: values[kPacketsIn],
      packetsOut: values[kPacketsOut],
      largestPacketIn: values[kLargestPacketIn],
      largestPacketOut: values[kLargestPacketOut],
      dropsIn: values[kDropsIn],
      dropsOut: values[kDropsOut],
      dropsEINVAL: values[kDropsEINVAL],
      dropsEMSGSIZE: values[kDropsEMSGSIZE],
      dropsECONNREFUSED: values[kDropsECONNREFUSED],
      dropsEIO: values[kDropsEIO],
      dropsENOBUFS: values[kDropsENOBUFS],
      stallsIn: values[kStallsIn],
      stallsOut: values[kStallsOut],
      peakBufferedIn: values[kPeakBufferedIn],
      peakBufferedOut: values[kPeakBufferedOut],
      closeNotify: values[kCloseNotify] !== 0,
      reason: this.#reason,
    };
  }

  /**
   * Takes over the directions. Before the TLS handshake is done, as soon as it
   * is. Does nothing while running.
   * @returns {this}
   */
  start() {
    if (this.#state === 'running')
      return this;
    if (this.#state !== 'idle')
      throw new ERR_INVALID_STATE('The splice has ended');
    this.#check();
    this.#peer?.#check();
    const unlisten = this.#listen();
    let unlistenPeer;
    const unlistenAll = () => {
      unlisten();
      unlistenPeer?.();
    };
    try {
      unlistenPeer = this.#peer?.#listen();
      // The signal may have done anything.
      if (this.#state === 'idle') {
        this.#check();
        this.#peer?.#check();
      }
    } catch (err) {
      unlistenAll();
      throw err;
    }
    // Even started it, or ended.
    if (this.#state !== 'idle') {
      unlistenAll();
      return this;
    }
    this.#unlisten = unlistenAll;
    this.#take();
    if (this.#state === 'running')
      this.#peer?.#take();
    return this;
  }

  #check() {
    const socket = this.#socket;
    checkSocket(socket);
    checkExtensible(socket, 'socket');
    if (this.#stream)
      checkExtensible(this.#stream, 'stream');
    const wantsIn = (this.#directions & kIn) !== 0;
    const wantsOut = (this.#directions & kOut) !== 0;
    if ((wantsIn && socket[kSpliceIn]) || (wantsOut && socket[kSpliceOut]))
      throw new ERR_INVALID_STATE('This direction of the socket is spliced');
    if (wantsIn && socket.readableEncoding !== null)
      throw new ERR_INVALID_STATE('The socket decodes what it reads');
    if (wantsOut && socket.writableEnded)
      throw new ERR_INVALID_STATE('The socket has been ended');
    const endpoint = this.#endpoint;
    this.#checkEndpoint();
    if (wantsIn && endpoint?.[kWriter])
      throw new ERR_INVALID_STATE('The stream is written to by another splice');
    if (wantsOut && endpoint?.[kReader])
      throw new ERR_INVALID_STATE('The stream is read by another splice');
  }

  #checkEndpoint() {
    const endpoint = this.#endpoint;
    if (!endpoint)
      return;
    checkEndpoint(endpoint);
    if (this.#directions & kIn && endpoint.writableEnded)
      throw new ERR_INVALID_STATE('The stream has been ended');
  }

  #take() {
    const socket = this.#socket;
    const endpoint = this.#endpoint;
    const aborted = this.#signal?.aborted;
    this.#state = 'running';
    this.#watch();
    socket[kOnIdle] = onSocketIdle;
    socket[kBeforeFinal] = beforeFinal;
    socket[kBeforeDestroy] = beforeDestroy;
    if (endpoint)
      endpoint[kOnIdle] = onEndpointIdle;
    if (this.#directions & kIn) {
      socket[kSpliceIn] = this;
      if (endpoint) {
        endpoint[kWriter] = this;
        this.#sinkFlushed =
          WriteGuard.take(endpoint, this, () => this.#onSinkFlushed());
      }
    }
    if (this.#directions & kOut) {
      socket[kSpliceOut] = this;
      this.#outFlushed = WriteGuard.take(socket, this, () => this.#onOutFlushed());
      if (endpoint)
        endpoint[kReader] = this;
    }
    // The pump's first turn is one of the event loop's, so that whoever
    // listens to 'secure' can still destroy the socket.
    // `secureConnecting` stays true on a TLSSocket that has no tls.Server.
    if (aborted)
      this.#stop('aborted');
    else if (socket._secureEstablished)
      this.#begin();
  }

  // Returns what undoes it. Nothing has happened if it throws: the signal may be
  // anything.
  #listen() {
    const abortListener = this.#signal === undefined ? undefined :
      addAbortListener(this.#signal, () => this.#stop('aborted'));
    return () => guarded(() => abortListener?.[SymbolDispose]());
  }

  #watch() {
    watch(this.#socket, this);
    forEachBelow(this.#socket, watch, this);
    if (this.#stream)
      watch(this.#stream, this);
  }

  #unwatch() {
    unwatch(this.#socket, this);
    forEachBelow(this.#socket, unwatch, this);
    if (this.#stream)
      unwatch(this.#stream, this);
  }

  [kOnSecure](socket, unverified) {
    // It is emitted again after a renegotiation.
    if (socket !== this.#socket || this.#hasBegun || socket.destroyed)
      return;
    // Whoever has removed the listener that checks the certificate has not
    // thereby accepted it.
    if (unverified) {
      this.#fail(new ERR_INVALID_STATE(
        'The certificate of the peer has not been verified'), 'tls');
    } else {
      this.#begin();
    }
  }

  // TLSSocket emits 'error' for an error of TLS, but is not destroyed by it.
  [kOnTLSError](socket, err) {
    if (socket === this.#stream || this.#tlsError !== null)
      return;
    if (socket !== this.#socket)
      return this.#onBelowFailed(err);
    this.#tlsError = err;
    process.nextTick(() => {
      if (this.#state === 'running' || this.#state === 'stopping')
        this.#failTLS();
    });
  }

  // A TLSSocket that the spliced one runs over has failed. Node tells only that
  // TLSSocket, and may leave it open.
  #onBelowFailed(err) {
    // The TLSSocket below is still inside a call to OpenSSL.
    setImmediate(() => {
      if (this.#state !== 'running')
        return;
      if (this.#hasBegun)
        this.#native.failBelow();
      else
        this.#socket.destroy(err);
    });
  }

  [kOnClose](socket) {
    if (socket !== this.#stream)
      return;
    this.#endpointClosed = true;
    if (socket === this.#endpoint)
      this.#onEndpointClose();
    this.#finishIfDone();
  }

  /**
   * Ends the splice and gives the socket back to JS. Idempotent.
   * @returns {Promise<object>} The stats; never rejects.
   */
  stop() {
    this.#quiet = true;
    this.#stopped ??= PromisePrototypeThen(this.#promise(), undefined,
                                           () => this.stats);
    this.#stop('stopped');
    return this.#stopped;
  }

  async [SymbolAsyncDispose]() {
    await this.stop();
  }

  /**
   * Keeps the event loop alive for the endpoint (the default).
   * @returns {this}
   */
  ref() {
    this.#native.ref();
    this.#stream?.ref();
    return this;
  }

  /**
   * Does not keep the event loop alive for the endpoint.
   * @returns {this}
   */
  unref() {
    this.#native.unref();
    this.#stream?.unref();
    return this;
  }

  [inspect.custom](depth, options) {
    if (depth < 0)
      return this;
    return `TLSSplice ${inspect({
      state: this.#state,
      stats: this.stats,
    }, { ...options, depth: options.depth == null ? null : options.depth - 1 })}`;
  }

  get #stream() {
    return this.#endpoint ?? this.#peer?.#socket;
  }

  // Runs to the end, for pipeToNative().
  async [kRun]() {
    this.#quiet = true;
    try {
      this.start();
    } catch (err) {
      // What it has taken over (`autoClose`) is closed now, not when it is
      // garbage.
      this.#stop('stopped');
      await this.#promise();
      throw err;
    }
    try {
      return await this.#promise();
    } catch (err) {
      // Not with `err`: it is reported once, by the promise.
      this.#socket.destroy();
      throw err;
    }
  }

  // When bytes last moved, in milliseconds of the event loop's clock.
  get [kLastMove]() {
    return this.#readStats()[kLastActivity];
  }

  #begin() {
    if (this.#state !== 'running')
      return;
    this.#hasBegun = true;
    // OpenSSL reports it once, and has reported it to JS.
    this.#tlsError ??= this.#socket._handle[kTLSError] ?? null;
    if (this.#tlsError !== null)
      this.#failAfterReading();
    // Much may have changed during the handshake.
    if (this.#endpoint && (this.#endpoint.destroyed || !this.#endpoint._handle))
      return this.#fail(new ERR_STREAM_PREMATURE_CLOSE(), 'endpoint');
    if (this.#directions & kIn && this.#socket.readableEncoding !== null) {
      const err = new ERR_INVALID_STATE('The socket decodes what it reads');
      return this.#fail(err, 'tls');
    }
    try {
      this.#checkEndpoint();
    } catch (err) {
      return this.#fail(err, 'endpoint');
    }
    if (this.#endpoint && this.#directions & kOut) {
      this.#endpointRead = this.#endpoint._handle.reading;
      stopReading(this.#endpoint);
      this.#endpointChunks = takeReadable(this.#endpoint);
      const state = this.#endpoint._readableState;
      // 'end' waits for what was just taken, which may come back.
      if (state.ended && this.#endpointChunks.length > 0) {
        state.ended = false;
        this.#endpointEndHeld = true;
      }
    }
    if (this.#directions & kIn)
      this.#beginIn();
    if (this.#state === 'running' && this.#directions & kOut)
      this.#beginOut();
  }

  #beginIn() {
    const socket = this.#socket;
    // Another splice may have ended in this turn. This emits 'data', or an error.
    guarded(() => NativeSplice.settle(socket._handle));
    if (this.#state !== 'running')
      return;
    const chunks = takeReadable(socket);
    if (this.#endpoint && !this.#sinkFlushed)
      this.#native.holdSink(true);
    if (!this.#native.start(socket._handle, kIn, chunks, this.#endpoint?._handle))
      return this.#fail(new ERR_SOCKET_CLOSED(), 'tls');
    this.#inBegun = true;
    pretendReading(socket);
    if (socket._readableState.ended) {
      // 'end' waits for what was just taken, which may come back.
      if (chunks.length > 0) {
        socket._readableState.ended = false;
        this.#endHeld = true;
      } else if (!socket.readableEnded) {
        socket.read(0);
      }
    }
  }

  // What JS had written to the endpoint is there.
  #onSinkFlushed() {
    this.#sinkFlushed = true;
    if (this.#state === 'running')
      this.#native.holdSink(false);
  }

  #giveEnd() {
    if (!this.#endHeld)
      return;
    this.#endHeld = false;
    guarded(() => {
      this.#socket.push(null);
      this.#socket.read(0);
    });
  }

  // What JS has written goes out first.
  #beginOut() {
    if (this.#outFlushed ||
        NativeSplice.writeError(this.#socket._handle) !== 0) {
      this.#beginOutNow();
    } else {
      this.#outWaits = true;
    }
  }

  #onOutFlushed() {
    this.#outFlushed = true;
    if (this.#outWaits && this.#state === 'running')
      this.#beginOutNow();
  }

  #beginOutNow() {
    // By the end of the socket, see kOnFinal.
    if (this.#outBegun)
      return;
    // A callback of OpenSSL can run ticks. The pump is in the middle of it.
    if (this.#native.getState() & kBusy) {
      setImmediate(() => {
        if (this.#state === 'running')
          this.#beginOutNow();
      });
      return;
    }
    const chunks = this.#endpointChunks ?? [];
    if (!this.#native.start(this.#socket._handle, kOut, chunks,
                            this.#endpoint?._handle)) {
      return this.#fail(new ERR_SOCKET_CLOSED(), 'tls');
    }
    this.#outBegun = true;
    if (this.#endpoint)
      this.#endpointChunks = [];
    if (this.#onFinal)
      this.#native.endOut();
  }

  // Looks at what the native side has come to.
  #update() {
    if (this.#isClosing || this.#state === 'idle')
      return;
    const state = this.#native.getState();
    // A callback of OpenSSL can run ticks. The native side calls again.
    if (state & kBusy)
      return;
    if (state & kTLSFailed) {
      this.#failTLS();
    } else if (this.#state === 'stopping') {
      this.#finishStop(state);
    } else if (state & kFailed) {
      const failure = this.#native.getFailure();
      if (failure === undefined)
        return this.#failTLS();
      const { 0: err, 1: syscall, 2: direction, 3: offset } = failure;
      if (err !== 0) {
        this.#endpointFailed = syscall === 'read';
        this.#stop('error', errorOf(err, syscall), 'endpoint');
      } else {
        const name = direction === kIn ? 'in' : 'out';
        // The side is that of whoever has sent the bytes.
        this.#stop('error', new ERR_TLS_SPLICE_FRAMING(name, offset),
                   direction === kIn ? 'tls' : 'endpoint');
      }
    } else {
      if (state & kInOver)
        this.#onInOver();
      if (state & kOutOver)
        this.#onOutOver();
      if (state & kEndpointClosed)
        this.#onEndpointClose();
    }
  }

  // The TLS peer has ended, JS has been told, and the endpoint has every byte.
  #onInOver() {
    if (this.#inOver)
      return;
    this.#inOver = true;
    this.#giveEnd();
    // What the other splice does about it is up to that.
    this.#endpoint?.[kGuard]?.release(this);
    if (this.#peer || this.#parent || (this.#end && !this.#endpoint))
      this.#native.shutdownEndpoint();
    else if (this.#end)
      this.#endpoint.end();
    this.#closeIfOver();
  }

  // The endpoint has ended, or end() was called, and all of it is flushed.
  #onOutOver() {
    if (this.#outOver)
      return;
    const socket = this.#socket;
    const over = () => {
      this.#outOver = true;
      this.#closeIfOver();
      if (this.#parent?.#state === 'running')
        this.#parent.#closeIfOver();
    };
    if (this.#onFinal) {
      const onFinal = this.#onFinal;
      this.#onFinal = null;
      onFinal();
      over();
    } else if (this.#end) {
      if (this.#outEnding)
        return;
      this.#outEnding = true;
      socket.end((err) => {
        if (!err)
          over();
      });
    } else {
      this.#release(kOut);
      over();
    }
  }

  // Only at the end: a stream that sees its own end may close itself, and the
  // other direction with it.
  #releaseEndpoint() {
    const endpoint = this.#endpoint;
    if (endpoint?.[kReader] === this)
      endpoint[kReader] = undefined;
    if (endpoint?.[kWriter] === this)
      endpoint[kWriter] = undefined;
    endpoint?.[kGuard]?.release(this);
    // The time that counts as idle starts over.
    clearTimeout(endpoint?.[kIdleTimer]);
    endpoint?._unrefTimer();
    const chunks = this.#endpointChunks;
    if (chunks === null)
      return;
    this.#endpointChunks = null;
    let more = endpoint._handle ? stopPretending(endpoint) : false;
    // One of a server with `pauseOnConnect`, that nobody has asked for bytes.
    if (!this.#endpointRead && !endpoint._readableState.reading &&
        !endpoint.readableFlowing) {
      more = false;
    }
    // At once: whoever is given it may start the next splice, which takes the rest.
    if (chunks.length > 0 && !giveToReader(endpoint, concat(chunks)))
      more = false;
    if (this.#endpointEndHeld && !endpoint.destroyed)
      guarded(() => endpoint.push(null));
    // libuv does not read it any more. Why has been said by the splice.
    if (this.#endpointFailed)
      endpoint.destroy();
    else if (more)
      resumeReading(endpoint);
  }

  get #isDone() {
    return (this.#inOver || !(this.#directions & kIn)) &&
           (this.#outOver || !(this.#directions & kOut));
  }

  #closeIfOver() {
    const peer = this.#peer;
    // The other TLSSocket may have yet to send what it got.
    const waits = peer && !peer.#isClosing && !peer.#outOver &&
                  (peer.#directions & kOut) !== 0;
    if (this.#isDone && !waits)
      this.#close('end');
  }

  // The splice of the other TLSSocket has.
  #onPeerClose() {
    const peer = this.#peer;
    if (this.#state !== 'running')
      this.#finishIfDone();
    else if (this.#isDone)
      this.#close('end');
    else if (peer.#reason !== 'end')
      this.#stop('error', peer.#error ?? new ERR_STREAM_PREMATURE_CLOSE(),
                 'endpoint');
    // Otherwise the native side knows that there is no sink any more.
  }

  #onEndpointClose() {
    const inDone = this.#inOver || !(this.#directions & kIn);
    const outDone = this.#outOver || !(this.#directions & kOut) ||
                    (this.#native.getState() & kOutOver);
    if (this.#state === 'running' && !(inDone && outDone))
      this.#stop('error', new ERR_STREAM_PREMATURE_CLOSE(), 'endpoint');
  }

  #stop(reason, error, side) {
    // The endpoint of one that has ended may still be writing.
    if (this.#state === 'closing')
      this.#closeEndpoint();
    if (this.#isClosing || this.#state === 'stopping')
      return;
    const idle = this.#state === 'idle' || !(this.#inBegun || this.#outBegun);
    this.#state = 'stopping';
    this.#setOutcome(reason, error, side);
    if (idle) {
      this.#close(reason);
      return;
    }
    this.#native.stop();
    this.#closeEndpoint();
    // Not now: the caller does not expect 'data' from inside this call.
    process.nextTick(() => this.#update());
  }

  #finishStop(state) {
    if (state & (kInStopped | kInOver))
      this.#release(kIn);
    // That gives JS what was not delivered, and it may have destroyed the socket.
    if (this.#isClosing)
      return;
    // Nothing is left to be waited for, or given back.
    if (this.#socket.destroyed)
      return this.#close(this.#reason);
    if ((this.#outBegun && !(state & (kOutStopped | kOutOver))) ||
        (this.#inBegun && !(state & (kInStopped | kInOver)))) {
      this.#startStopTimer();
    } else {
      this.#close(this.#reason);
    }
  }

  // Gives directions back to JS.
  #release(directions) {
    const socket = this.#socket;
    if (directions & kIn && socket[kSpliceIn] === this) {
      socket[kSpliceIn] = undefined;
      if (this.#inBegun) {
        const rest = this.#native.release(kIn);
        // JS may pass on to it what it is given now.
        this.#endpoint?.[kGuard]?.release(this);
        if (!socket.destroyed && socket._handle) {
          let more = stopPretending(socket);
          if (rest !== undefined && !giveToReader(socket, rest))
            more = false;
          this.#giveEnd();
          // Whoever reads it, but has yet to do so, gets a turn of the loop before
          // anything that comes next, which may be an error that destroys it.
          const isLater = socket.readableLength > 0;
          if (socket._handle)
            guarded(() => this.#native.resume(socket._handle, isLater));
          if (more && !socket[kSpliceIn])
            resumeReading(socket);
        }
      }
    }
    if (directions & kOut && socket[kSpliceOut] === this) {
      socket[kSpliceOut] = undefined;
      let unflushed = 0;
      if (this.#outBegun) {
        this.#native.release(kOut);
        // What cannot be sent any more is not waited for: why is reported after
        // what was read before.
        if (socket._handle && NativeSplice.writeError(socket._handle) === 0)
          unflushed = NativeSplice.unflushed(socket._handle);
      }
      socket[kGuard]?.release(this, unflushed);
    }
  }

  // The TLS session had failed before the splice began. If 'in' is spliced, the
  // endpoint gets what was decrypted, and then the native side says so.
  #failAfterReading() {
    setImmediate(() => {
      if (this.#state === 'running' && !this.#socket[kSpliceIn])
        this.#failTLS();
    });
  }

  // TLS or the stream below has failed. If JS does not know, tell it.
  #failTLS() {
    const socket = this.#socket;
    // It says so once, and this splice was waiting for the other TLSSocket then.
    if (socket.destroyed) {
      if (this.#state === 'stopping')
        this.#close(this.#reason);
      else
        this.#close('error', this.#tlsError ?? new ERR_SOCKET_CLOSED(), 'tls');
      return;
    }
    if (this.#tlsError === null) {
      try {
        const failure = this.#native.getFailure();
        if (failure === undefined)
          this.#tlsError = new ERR_INTERNAL_ASSERTION('The pump has panicked');
        else if (failure[0] !== 0)
          this.#tlsError = new ErrnoException(failure[0], failure[1]);
      } catch (err) {
        this.#tlsError = err;
      }
      socket.destroy(this.#tlsError);
    } else {
      // 'error' has been emitted.
      socket.destroy();
    }
  }

  #fail(error, side) {
    this.#close('error', error, side);
  }

  // From tlsSocket._destroy(): not one more byte.
  [kOnDestroy](socket, err) {
    if (socket !== this.#socket)
      return;
    if (this.#isClosing) {
      // Not if it closes itself, at the end of both directions.
      if (err || !socket.readableEnded || !socket.writableFinished)
        this.#closeEndpoint();
      return;
    }
    if (this.#state === 'stopping') {
      this.#close(this.#reason);
      return;
    }
    const state = this.#native.getState();
    const hasBegun = this.#inBegun || this.#outBegun;
    if (state & kTLSFailed || this.#tlsError !== null ||
        (err && (state & kTLSFailing || !hasBegun))) {
      this.#close('error', this.#tlsError ?? err ?? (this.#parent ?
        new ERR_STREAM_PREMATURE_CLOSE() : new ERR_SOCKET_CLOSED()), 'tls');
      return;
    }
    // What JS has seen the end of is over, even if the pump has not had its turn.
    const inOver = (state & kInOver) || !(this.#directions & kIn) ||
                   socket.readableEnded;
    const outOver = (state & kOutOver) || !(this.#directions & kOut) ||
                    (!this.#outBegun && socket.writableFinished);
    if (!err && inOver && outOver) {
      // The splice is over, so the end of the TLSWrap is not a failure of the splice.
      this.#native.release(kIn | kOut);
      this.#outOver = true;
      if (this.#directions & kIn)
        this.#onInOver();
      this.#closeIfOver();
    } else {
      this.#close('destroyed', err, 'tls');
    }
  }

  // From tlsSocket._final(): send what is held, then `callback`.
  [kOnFinal](callback) {
    // A handshake that the peer has ended in is never done: nothing can be sent.
    const isCutOff = !this.#hasBegun && this.#socket.readableEnded;
    if (isCutOff || this.#outOver || this.#native.getState() & kOutOver)
      return callback();
    this.#onFinal = callback;
    if (this.#outBegun)
      this.#native.endOut();
    else if (this.#outWaits && this.#state === 'running')
      this.#beginOutNow();
  }

  // From a guarded socket: JS has written nothing, which over TLS is to let it say
  // what it has to say. Returns false if that is done as without a splice.
  [kOnEmptyWrite](socket) {
    if (socket !== this.#socket || !this.#outBegun)
      return false;
    this.#native.cycle();
    return true;
  }

  #close(reason, error, side) {
    if (this.#isClosing)
      return;
    this.#state = 'closing';
    this.#setOutcome(reason, error, side);
    this.#counters = new Float64Array(this.#readStats());

    const socket = this.#socket;
    // First: what it does not write any more does not count, and is given back.
    if (reason !== 'end')
      this.#closeEndpoint();
    if (socket.destroyed) {
      // Closing the native side is enough, and can be done at any depth.
      if (socket[kSpliceIn] === this)
        socket[kSpliceIn] = undefined;
      if (socket[kSpliceOut] === this)
        socket[kSpliceOut] = undefined;
      socket[kGuard]?.release(this);
    } else {
      this.#release(kIn | kOut);
      // The time that counts as idle starts over.
      clearTimeout(socket[kIdleTimer]);
      socket._unrefTimer();
    }
    this.#native.close();

    this.#releaseEndpoint();
    this.#peer?.#stop('stopped');
    const onFinal = this.#onFinal;
    this.#onFinal = null;
    // An endpoint that has failed is nothing to the end of the socket.
    onFinal?.(socket.destroyed ? this.#error ?? new ERR_SOCKET_CLOSED() : null);
    this.#native.onchange = () => this.#finishIfDone();
    this.#isGivenBack = true;
    this.#finishIfDone();
    this.#parent?.#onPeerClose();
  }

  // Waits for what is still to come: the transfer of a file, the splice of the
  // other TLSSocket, and the endpoint's close.
  #finishIfDone() {
    if (this.#state !== 'closing' || !this.#isGivenBack)
      return;
    const peer = this.#peer;
    if (this.#isLate)
      this.#finish();
    else if (this.#native.getState() & kTransferring)
      this.#startStopTimer();
    else if (peer && peer.#state !== 'closed')
      return;  // That has a timer of its own.
    else if (this.#autoClose && this.#stream && !this.#endpointClosed)
      this.#endEndpoint();
    else
      this.#finish();
  }

  #finish() {
    if (this.#state === 'closed')
      return;
    this.#state = 'closed';
    clearTimeout(this.#stopTimer);
    this.#unwatch();
    // Now that all is given back: the signal may do anything.
    this.#unlisten?.();
    process.nextTick(() => this.#emitOutcome());
    this.#parent?.#finishIfDone();
  }

  // Closes the endpoint once it has written what it has been given.
  #endEndpoint() {
    if (this.#endpointEnding || this.#endpointDestroyed)
      return;
    this.#endpointEnding = true;
    guarded(() => this.#stream.end(() => this.#closeEndpoint()));
  }

  // Closes the endpoint now, whatever it still has to write: nobody is to wait for
  // a reader that there may never be.
  #closeEndpoint() {
    const stream = this.#stream;
    if (!this.#autoClose || !stream || this.#endpointDestroyed)
      return;
    this.#endpointDestroyed = true;
    if (this.#unlisten === null && stream.destroyed) {
      // Before this splice has heard of it. It is closed in this turn of the loop.
      setImmediate(() => setImmediate(() => this.#onEndpointGone()));
      return;
    }
    watch(stream, this);
    guarded(() => stream.destroy());
    // That of process.stdout and the like does nothing.
    if (!stream.destroyed)
      this.#onEndpointGone();
    else if (!this.#endpointClosed)
      this.#startStopTimer();
  }

  #onEndpointGone() {
    this.#endpointClosed = true;
    this.#finishIfDone();
  }

  #startStopTimer() {
    this.#stopTimer ??= setTimeout(() => {
      // If the loop was busy, what is waited for may have come meanwhile.
      setImmediate(() => setImmediate(() => this.#onStopTimeout()));
    }, kStopTimeout);
  }

  // What the end of the splice waits for may never come.
  #onStopTimeout() {
    this.#update();
    if (this.#state === 'closed')
      return;
    this.#isLate = true;
    const state = this.#native.getState();
    // The thread of a transfer keeps what it needs for that.
    this.#native.abandon();
    if (this.#state === 'closing') {
      this.#finishIfDone();
    } else if (state & kWriting) {
      // Nobody knows how much of it the file will have got.
      this.#socket.destroy(new ErrnoException(UV_ETIMEDOUT, 'write'));
    } else if (state & kTransferring) {
      this.#close(this.#reason);
    } else {
      // The peer can neither get what is held nor do without.
      this.#socket.destroy(state & kWantsTLS ? new ERR_TLS_HANDSHAKE_TIMEOUT() :
        new ErrnoException(UV_ETIMEDOUT, 'write'));
      // That tells the splice, unless the socket was destroyed before.
      this.#close(this.#reason);
    }
  }

  #emitOutcome() {
    TypedArrayPrototypeSet(this.#counters, this.#readStats());
    const { stats } = this;
    this.#isOver = true;
    // Another splice of the same socket may have seen it from its other side.
    setSide(this.#error, this.#side);
    if (this.#outcome !== null)
      this.#settle();
    if (this.#error && (!this.#quiet || this.listenerCount('error') > 0)) {
      let thrown = true;
      try {
        this.emit('error', this.#error);
        thrown = false;
      } finally {
        // What it throws is reported before 'close' is emitted, and may throw too.
        if (thrown)
          process.nextTick(() => this.emit('close', stats));
      }
    }
    this.emit('close', stats);
  }
}

function checkSocket(socket) {
  if (socket.destroyed || !socket._handle)
    throw new ERR_SOCKET_CLOSED();
  // One that was destroyed and connected again
  if (!(socket._handle instanceof TLSWrap))
    throw new ERR_INVALID_STATE('The socket has no TLS');
  if (socket[kSession] || socket[kBoundSession])
    throw new ERR_INVALID_STATE('The socket belongs to an HTTP/2 session');
  if (socket.parser)
    throw new ERR_INVALID_STATE('The socket belongs to an HTTP parser');
  checkIsTop(socket);
}

function checkEndpoint(stream) {
  if (stream.destroyed)
    throw new ERR_SOCKET_CLOSED();
  if (stream.connecting || !stream._handle)
    throw new ERR_INVALID_STATE('The stream is not connected');
  const { _handle: handle } = stream;
  if (!(handle instanceof TCP || handle instanceof Pipe ||
        handle instanceof TTY)) {
    throw new ERR_INVALID_ARG_VALUE('options.stream', stream,
                                    'has no native handle; use pipe()');
  }
  if (stream.readableEncoding !== null)
    throw new ERR_INVALID_STATE('The stream decodes what it reads');
  if (stream[kSession] || stream[kBoundSession])
    throw new ERR_INVALID_STATE('The stream belongs to an HTTP/2 session');
  if (stream.parser)
    throw new ERR_INVALID_STATE('The stream belongs to an HTTP parser');
  checkIsTop(stream);
}

// Its bytes are those of another TLS connection.
function checkIsTop(socket) {
  if (below.has(socket._handle) || below.has(socket))
    throw new ERR_INVALID_STATE('A TLSSocket has been made over the socket');
}

// A TLSSocket is to be made over `stream`.
function beforeWrap(stream) {
  if (stream[kSpliceIn] || stream[kSpliceOut] || stream[kReader] || stream[kWriter])
    throw new ERR_INVALID_STATE('The socket is spliced');
}

// It has been made. `wrap` is `stream`, or what makes a stream of JavaScript look
// like a net.Socket.
function afterWrap(stream, wrap) {
  if (wrap === stream)
    below.add(wrap._handle);
  else
    below.add(stream);
}

// A splice needs properties of its own on its sockets.
function checkExtensible(socket, name) {
  if (!ObjectIsExtensible(socket))
    throw new ERR_INVALID_STATE(`The ${name} is not extensible`);
}

// Half of a socket may never have been there: that of process.stdout, of one that
// was made with `readable: false`, or the other end of a pipe.
function checkDirection(stream, direction) {
  let able = kIn | kOut;
  if (stream._writableState.writable === false)
    able &= ~kIn;
  if (stream._readableState.readable === false)
    able &= ~kOut;
  const { fd } = stream._handle;
  // Of a TLSSocket over a stream of JS there is none.
  if (isInt32(fd) && fd >= 0) {
    const mode = NativeSplice.accessMode(fd);
    if (mode >= 0)
      able &= mode;
  }
  if (kDirections[direction] & ~able) {
    throw new ERR_INVALID_ARG_VALUE(
      'options.stream', stream, `is not open for direction '${direction}'`);
  }
}

// It would send in the clear what was received encrypted, or round in circles.
function checkIsOther(socket, { fd, stream }) {
  const name = stream === undefined ? 'options.fd' : 'options.stream';
  if (stream === socket)
    throw new ERR_INVALID_ARG_VALUE(name, stream, 'is the socket itself');
  const runsOver = (stream, handle) => {
    for (let below = stream._handle; below; below = below._parent) {
      if (below === handle)
        return true;
    }
    return false;
  };
  if (fd === socket._handle.fd ||
      (stream !== undefined && (runsOver(socket, stream._handle) ||
                                runsOver(stream, socket._handle)))) {
    throw new ERR_INVALID_ARG_VALUE(name, stream ?? fd,
                                    'is what the TLS connection runs over');
  }
}

function validateOptions(options) {
  validateObject(options, 'options');
  let { fd } = options;
  const {
    stream,
    direction = 'duplex',
    autoClose = false,
    end = true,
    framing = 'auto',
    highWaterMark = kDefaultHighWaterMark,
    signal,
  } = options;
  validateString(direction, 'options.direction');
  validateOneOf(direction, 'options.direction', ['in', 'out', 'duplex']);
  validateBoolean(autoClose, 'options.autoClose');
  validateBoolean(end, 'options.end');
  validateString(framing, 'options.framing');
  validateOneOf(framing, 'options.framing', ['auto', 'raw', 'ip', 'u16be']);
  validateInteger(highWaterMark, 'options.highWaterMark', 1);
  if (signal !== undefined)
    validateAbortSignal(signal, 'options.signal');
  if (stream === undefined) {
    fd = getValidatedFd(fd, 'options.fd');
  } else {
    if (fd !== undefined) {
      throw new ERR_INVALID_ARG_VALUE('options.fd', fd,
                                      'cannot be combined with a stream');
    }
    if (!(stream instanceof net.Socket)) {
      if (stream instanceof Stream) {
        throw new ERR_INVALID_ARG_VALUE('options.stream', stream,
                                        'has no native handle; use pipe()');
      }
      throw new ERR_INVALID_ARG_TYPE('options.stream', 'net.Socket', stream);
    }
  }
  return {
    fd, stream, direction, autoClose, end, framing, highWaterMark, signal,
  };
}

function openNative(options) {
  const { stream, direction, framing } = options;
  const name = stream === undefined ? 'options.fd' : 'options.stream';
  const value = stream ?? options.fd;
  const fd = stream === undefined ? options.fd : TLS_SPLICE_FD_NONE;
  const native = new NativeSplice();
  const err = native.open(fd, kDirections[direction], options.highWaterMark,
                          kFramings[framing],
                          stream === undefined && options.autoClose);
  if (err < 0)
    throw errorOf(err, 'open');
  if (err === TLS_SPLICE_EACCMODE) {
    throw new ERR_INVALID_ARG_VALUE(
      name, value, `is not open for direction '${direction}'`);
  }
  if (err === TLS_SPLICE_ENOTSUP) {
    throw new ERR_INVALID_ARG_VALUE(
      name, value, 'is not a pipe, socket, terminal, file, or TUN device');
  }
  if (err === TLS_SPLICE_EFRAMING) {
    throw new ERR_INVALID_ARG_VALUE('options.framing', framing,
                                    'does not fit the endpoint');
  }
  if (err === TLS_SPLICE_EVNETHDR) {
    throw new ERR_INVALID_ARG_VALUE(name, value,
                                    'is a device with IFF_VNET_HDR');
  }
  if (err !== 0)
    throw new ERR_INVALID_STATE(`The splice cannot be made (${err})`);
  return native;
}

/**
 * Joins the socket to a native endpoint; nothing moves before start().
 * @param {object} options
 * @returns {TLSSplice}
 */
function spliceTo(options) {
  if (this?.encrypted !== true || !(this instanceof net.Socket))
    throw new ERR_INVALID_THIS('TLSSocket');
  if (NativeSplice === undefined)
    throw new ERR_FEATURE_UNAVAILABLE_ON_PLATFORM('tlsSocket.spliceTo()');
  emitExperimentalWarning('tlsSocket.spliceTo()');
  const validated = validateOptions(options);
  if (this._handle)
    checkIsOther(this, validated);
  checkSocket(this);
  checkExtensible(this, 'socket');
  if (validated.stream !== undefined)
    checkExtensible(validated.stream, 'stream');
  if (validated.stream?.encrypted)
    checkSocket(validated.stream);
  else if (validated.stream !== undefined)
    checkEndpoint(validated.stream);
  if (validated.stream !== undefined)
    checkDirection(validated.stream, validated.direction);
  return new TLSSplice(kCreate, this, openNative(validated), validated);
}

/**
 * Splices to `target` and runs to the end.
 * @param {number|net.Socket} target
 * @param {object} [options]
 * @returns {Promise<object>} The stats. On an error the socket is destroyed.
 */
async function pipeToNative(target, options = kEmptyObject) {
  let splice;
  let autoClose = false;
  try {
    // Before anything can be wrong with the others.
    autoClose = options?.autoClose === true;
    validateObject(options, 'options');
    const endpoint = typeof target === 'number' ? { fd: target } :
      { stream: target };
    if (target === undefined || target === null || (
      typeof target !== 'number' && typeof target !== 'object')) {
      throw new ERR_INVALID_ARG_TYPE('target', ['number', 'net.Socket'], target);
    }
    splice = FunctionPrototypeCall(spliceTo, this, { ...options, ...endpoint });
  } catch (err) {
    if (autoClose)
      await closeTarget(this, target);
    throw err;
  }
  return splice[kRun]();
}

// What pipeToNative() was to close, and no splice has taken over.
async function closeTarget(socket, target) {
  if (typeof target === 'number' && isInt32(target) && target >= 0) {
    // Not under libuv, which has a socket of its own for that.
    if (socket instanceof net.Socket && socket._handle?.fd === target) {
      target = socket;
    } else {
      try {
        closeSync(target);
      } catch {
        // It has been closed before, or is closed all the same.
      }
    }
  }
  if (target instanceof net.Socket)
    await closeStream(target);
}

// Destroys a stream. Resolves when 'close' is emitted, or cannot be expected.
async function closeStream(stream) {
  const { promise, resolve } = PromiseWithResolvers();
  const waiting = {
    __proto__: null,
    [kOnClose]: resolve,
    [kOnDestroy]: noop,
    [kOnSecure]: noop,
    [kOnTLSError]: noop,
  };
  if (stream.destroyed || !ObjectIsExtensible(stream)) {
    setImmediate(() => setImmediate(resolve));
  } else {
    watch(stream, waiting);
  }
  guarded(() => stream.destroy());
  if (!stream.destroyed)
    resolve();
  const timer = setTimeout(resolve, kStopTimeout);
  await promise;
  clearTimeout(timer);
  unwatch(stream, waiting);
}

// The idle timeout of a spliced socket has run out, as far as JS can tell, which
// does not see what moves in native code. Emits 'timeout', now or when it really
// has; `told` is the last time when that was done. Returns false if there is no
// splice.
function onIdle(socket, spliceIn, spliceOut, told) {
  clearTimeout(socket[kIdleTimer]);
  if (!spliceIn && !spliceOut)
    return false;
  const { timeout, [kTimeout]: timer } = socket;
  const begun = timer?._idleStart;
  const last = MathMax(spliceIn?.[kLastMove] ?? 0, spliceOut?.[kLastMove] ?? 0);
  const rest = last + timeout - getLibuvNow();
  if (rest <= 0 && last !== told) {
    told = last;
    socket.emit('timeout');
    // The next one would keep it for as long again.
    if (socket.destroyed || socket.timeout !== timeout ||
        timer?._idleStart !== begun) {
      return true;
    }
  }
  socket[kIdleTimer] = setTimeout(() => {
    // Not if it was set or has been started anew.
    if (socket.timeout === timeout && timer?._idleStart === begun)
      socket[kOnIdle](told);
  }, rest > 0 ? rest : timeout);
  socket[kIdleTimer].unref();
  return true;
}

function onEndpointIdle(told) {
  return onIdle(this, this[kReader], this[kWriter], told);
}

function onSocketIdle(told) {
  return onIdle(this, this[kSpliceIn], this[kSpliceOut], told);
}

// From net.Socket.prototype._final(), which is called again when what is left to
// send has gone. Returns false if there is no splice to wait for.
function beforeFinal(callback) {
  this[kBeforeFinal] = undefined;
  const { [kSpliceOut]: splice } = this;
  if (!splice)
    return false;
  const final = (err) => {
    if (err)
      callback(err);
    else
      FunctionPrototypeCall(net.Socket.prototype._final, this, callback);
  };
  splice[kOnFinal]((err) => { err ? callback(err) : flush(this, final); });
  return true;
}

// From net.Socket.prototype._destroy()
function beforeDestroy(err) {
  this[kSplices]?.onDestroy(this, err);
  clearTimeout(this[kIdleTimer]);
}

// Adds the methods. What a spliced socket does otherwise it does itself, so that
// there is nothing new about one that is not.
function install({ prototype }) {
  prototype.spliceTo = spliceTo;
  prototype.pipeToNative = pipeToNative;
}

module.exports = { TLSSplice, afterWrap, beforeWrap, install };
