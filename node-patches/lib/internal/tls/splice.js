'use strict';

// tlsSocket.spliceTo(), tlsSocket.pipeToNative(), and the life of a tls.TLSSplice. Its
// bytes move in native code, see src/crypto/crypto_tls_splice.cc and deps/tls_splice.
// splice_takeover.js takes sockets over and gives them back; splice_endpoint.js is about
// what a TLSSocket can be spliced to. The words that these three files use:
//
//   socket     the TLSSocket that is spliced; its `peer` is at the other end of TLS
//   endpoint   what the socket is spliced to: a file descriptor or a `stream`
//   direction  'in' (what the peer sends goes to the endpoint), or 'out' (the reverse)
//   start      start() is called, and the splice takes the directions of the socket:
//              JavaScript cannot read, or cannot write to, what the splice has taken
//   begin      the handshake is done, and the bytes of a direction move
//   end        the last byte of a direction, and its end, have been delivered
//              (in native code: the direction is over)
//   stop       no more bytes move: after stop(), an abort, or a failure
//   give back  JavaScript has a socket again, and the bytes that were not delivered
//   close      'close' is emitted: everything is given back, nothing is waited for
//
// Its states, some of which a splice may skip: 'idle'; 'running', from start() on;
// 'stopping'; 'returning', while sockets are being given back; 'closing', while something
// else is waited for; 'closed'. They are never left for an earlier one.

const {
  ArrayPrototypeFilter, ArrayPrototypeFind, ArrayPrototypePush, Float64Array, MathMax,
  ObjectAssign, ObjectIsExtensible,
  PromisePrototypeThen, PromiseWithResolvers, ReflectDefineProperty, Symbol, SymbolAsyncDispose,
  SymbolDispose, TypedArrayPrototypeSet,
} = primordials;

const { AsyncResource } = require('async_hooks');
const { channel } = require('diagnostics_channel');
const EventEmitter = require('events');
const net = require('net');
const { clearTimeout, setImmediate, setTimeout } = require('timers');
const { kTLSError, kTakeover } = require('internal/net');
const { kMaybeDestroy } = require('internal/stream_base_commons');
const { addAbortListener } = require('internal/events/abort_listener');
const { emitExperimentalWarning, kEmptyObject } = require('internal/util');
const { inspect } = require('internal/util/inspect');
const timersBinding = internalBinding('timers');
let debug = require('internal/util/debuglog').debuglog('tls', (fn) => {
  debug = fn;
});
const {
  Reader, Takeover, Writer, end, guarded,
  kLastMove, kOnCloseBelow, kOnDestroy, kOnEmptyWrite, kOnFinal, kOnReadEnd, kOnSecure, kOnTLSError,
  kOnWrite,
} = require('internal/tls/splice_takeover');
const {
  afterWrap, beforeWrap, checkSocket, closeTarget, createEndpoint, errorOf,
  kDirections, kOnEndpointClose, kOnEndpointConnect, kStopTimeout, nounOf, openNative,
  validateArguments, validateOptions,
} = require('internal/tls/splice_endpoint');
const {
  AbortError,
  ConnResetException,
  ErrnoException,
  codes: {
    ERR_FEATURE_UNAVAILABLE_ON_PLATFORM, ERR_ILLEGAL_CONSTRUCTOR,
    ERR_INTERNAL_ASSERTION, ERR_INVALID_STATE, ERR_INVALID_THIS,
    ERR_SOCKET_CLOSED, ERR_STREAM_PREMATURE_CLOSE, ERR_TLS_HANDSHAKE_TIMEOUT,
    ERR_TLS_SPLICE_FRAMING,
  },
} = require('internal/errors');
const {
  // Windows has neither this class nor the constants.
  TLSSplice: NativeSplice,
  spliceConstants = kEmptyObject,
} = internalBinding('tls_wrap');
const {
  kInOver, kOutOver, kInStopped, kOutStopped,
  kEndpointFailed, kTLSFailed, kTLSFailing, kEndpointClosed,
  kBusy, kCutOff, kTransferring, kWriting, kWantsHandshake,
  // The indices of the counters.
  kBytesIn, kBytesOut, kPacketsIn, kPacketsOut, kLargestPacketIn, kLargestPacketOut,
  kDropsIn, kDropsOut, kDropsEINVAL, kDropsEMSGSIZE, kDropsECONNREFUSED, kDropsEIO,
  kDropsENOBUFS, kSuperPacketsIn, kSuperPacketsOut, kSuperPacketsRefused,
  kStallsIn, kStallsOut, kPeakBufferedIn, kPeakBufferedOut,
  kCloseNotify, kLastActivity, kStatsCount,
} = spliceConstants;
const { UV_ETIMEDOUT } = internalBinding('uv');

const startChannel = channel('tls.splice.start');
const errorChannel = channel('tls.splice.error');
const endChannel = channel('tls.splice.end');

const { in: kIn, out: kOut } = kDirections;
const kNames = { __proto__: null, [kIn]: 'in', [kOut]: 'out', [kIn | kOut]: 'duplex' };
// A direction as the TLSSocket at the other end sees it.
const kMirrored = { __proto__: null, in: 'out', out: 'in', duplex: 'duplex' };

// The native side fills this when somebody asks. All splices share it, since there can
// be thousands of which nobody asks.
const counters = new Float64Array(kStatsCount);

// An Array is cheaper to make than another typed array, whose memory is outside of the heap.
function copyOf(numbers) {
  const copy = [];
  for (let i = 0; i < numbers.length; i++)
    ArrayPrototypePush(copy, numbers[i]);
  return copy;
}

// Only this file can make a TLSSplice.
const kCreate = Symbol('kCreate');

// Returns the directions for which a state of the native side has one of the bits.
function directionsOf(state, inBits, outBits) {
  return (state & inBits ? kIn : 0) | (state & outBits ? kOut : 0);
}

// Returns a TLSSocket, and each socket that it runs over.
function layersOf(socket) {
  const layers = [];
  do
    ArrayPrototypePush(layers, socket);
  while ((socket = socket._parent) instanceof net.Socket && ObjectIsExtensible(socket));
  return layers;
}

// Says which side has failed. The error may be anything that a socket was destroyed with.
function setSide(error, side) {
  if (typeof error !== 'object' || error === null)
    return;
  try {
    ReflectDefineProperty(error, 'side', {
      __proto__: null, configurable: true, enumerable: true, value: side, writable: true,
    });
  } catch {
    // A proxy may throw.
  }
}

// How a splice ends, and the promise for that.
class Outcome {
  reason = null;
  error = null;
  isAwaited = false;  // The user has the promise: 'error' needs no listener.
  #side = null;       // Which side has failed: 'tls' or 'endpoint'.
  #stats = null;      // Those that are final, or null before that.
  #deferred = null;

  set(reason, error, side) {
    this.reason = reason;
    if (error) {
      this.error = error;
      this.#side = side;
      setSide(error, side);
    }
  }

  get isFinal() {
    return this.#stats !== null;
  }

  settle(stats) {
    this.#stats = stats;
    // Another splice of the same socket may have set the side that it sees.
    setSide(this.error, this.#side);
    this.#settlePromise();
  }

  #settlePromise() {
    if (this.#stats === null || this.#deferred === null)
      return;
    if (this.error)
      this.#deferred.reject(this.error);
    else
      this.#deferred.resolve({ ...this.#stats });
  }

  get promise() {
    if (this.#deferred === null) {
      this.#deferred = PromiseWithResolvers();
      // A rejection is never reported as unhandled.
      PromisePrototypeThen(this.#deferred.promise, undefined, () => {});
      this.#settlePromise();
    }
    return this.#deferred.promise;
  }
}

/**
 * One splice of a TLSSocket to an endpoint. Emits 'error' at most once, and
 * then 'close' once, with the stats.
 */
class TLSSplice extends EventEmitter {
  // Events are emitted in the asynchronous context of whoever has made the splice.
  #resource = new AsyncResource('TLSSpliceEvents');
  #socket;
  #name = 'socket';  // What error messages call the socket.
  #layers = [];      // The socket, and each socket that it runs over.
  #native;
  #endpoint;
  // A TLSSocket that is the endpoint has a splice, too: the `#second` of this one,
  // which is the `#first` of that one.
  #first = null;
  #second = null;
  #directions;
  #endsOther;      // The `end` option.
  #head;           // The `head` option, until 'in' begins.
  #signal;
  #state = 'idle';
  #outcome = new Outcome();
  #stopped = null;   // The promise of stop().
  #counters = null;  // A copy, made when the splice was given back.
  #isSecure = false;  // The handshake is done.
  #begun = 0;        // The directions that have begun.
  #ended = 0;        // The directions that have ended.
  #reader = null;    // The Reader of the socket, if 'in' is spliced.
  #writer = null;    // The Writer of the socket, if 'out' is spliced.
  #waitsForFlush = false;  // 'out' begins when the writer has been flushed.
  #isEnding = false;  // The splice has called socket.end().
  #closedBelow = null;  // The handle of the socket, if the stream below has closed; see kOnCloseBelow.
  #onFinal = null;   // The socket's _final() waits for this to be called.
  #tlsError = null;
  #layerError = null;  // The error of a TLSSocket that this socket runs over.
  #removeAbortListener = null;
  #stopTimer = null;
  #stopBegun = null;  // When the stop timer was started.
  #isLate = false;   // The stop timer has run out.

  constructor(token, socket, native, options) {
    if (token !== kCreate)
      throw new ERR_ILLEGAL_CONSTRUCTOR();
    super();
    this.#socket = socket;
    this.#native = native;
    this.#directions = kDirections[options.direction];
    this.#endsOther = options.end;
    // Most upgrades come with an empty one, which nothing has to wait for.
    this.#head = options.head?.length > 0 ? options.head : undefined;
    this.#signal = options.signal;
    this.#endpoint = createEndpoint(native, this, options);
    native.onchange = () => this.#update();
    // A write of ciphertext has failed after 'out' was given back, so that only the socket
    // can report it. #update() comes first: it takes note of directions that have ended, which
    // must not fail because the socket is destroyed.
    native.onerror = (err) => {
      this.#update();
      this.#socket.destroy(new ErrnoException(err, 'write'));
    };
    const { stream } = options;
    if (stream?.encrypted) {
      const direction = kMirrored[options.direction];
      const mirrored = {
        __proto__: null, ...options, direction, framing: 'raw', maxPacketSize: undefined, autoClose: false,
      };
      this.#second = new TLSSplice(kCreate, stream, openNative(mirrored), {
        __proto__: null, ...mirrored, stream: undefined, head: undefined, signal: undefined,
      });
      this.#second.#first = this;
      this.#second.#name = nounOf(options.name);
      this.#second.#outcome.isAwaited = true;
      native.join(this.#second.#native);
    }
  }

  /** @type {'idle'|'running'|'stopping'|'closed'} */
  get state() {
    if (!this.#isGivenBack)
      return this.#state;
    // With `autoClose` the stream belongs to the splice until that has closed.
    return this.#endpoint.autoClose && this.#state !== 'closed' ? 'stopping' : 'closed';
  }

  // Whether all sockets are given back, or being given back.
  get #isGivenBack() {
    return this.#state === 'returning' || this.#state === 'closing' ||
           this.#state === 'closed';
  }

  /** @type {Error|null} The error with which the splice has failed. */
  get errored() {
    return this.#outcome.error;
  }

  /**
   * Resolves with the stats when the splice has closed, or rejects with its error. That
   * is never reported as an unhandled rejection.
   * @type {Promise<object>}
   */
  get finished() {
    this.#outcome.isAwaited = true;
    return this.#outcome.promise;
  }

  #readStats() {
    if (this.#counters !== null)
      TypedArrayPrototypeSet(counters, this.#counters);
    if (!this.#outcome.isFinal)
      this.#native.readStats(counters);
    return counters;
  }

  /** @type {object} The numbers of bytes, packets, and stalls up to now, and the reason. */
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
      superPacketsIn: values[kSuperPacketsIn],
      superPacketsOut: values[kSuperPacketsOut],
      superPacketsRefused: values[kSuperPacketsRefused],
      stallsIn: values[kStallsIn],
      stallsOut: values[kStallsOut],
      peakBufferedIn: values[kPeakBufferedIn],
      peakBufferedOut: values[kPeakBufferedOut],
      closeNotify: values[kCloseNotify] !== 0,
      reason: this.#outcome.reason,
    };
  }

  /**
   * Takes the directions over from JavaScript. They begin when the handshake is
   * done. Does nothing while the splice is running.
   * @returns {this}
   * @throws {Error} As spliceTo() does; ERR_INVALID_STATE if the splice has stopped
   *   or a direction cannot be taken over.
   */
  start() {
    if (this.#state === 'running')
      return this;
    if (this.#state !== 'idle')
      throw new ERR_INVALID_STATE('The splice has already been stopped or closed');
    this.#check();
    const aborted = this.#signal !== undefined && this.#listen();
    if (this.#state !== 'idle')
      return this;
    this.#take();
    if (aborted)
      this.#stop('aborted');
    else
      this.#beginIfSecure();
    if (this.#state === 'running' && this.#second !== null) {
      this.#second.#take();
      this.#second.#beginIfSecure();
    }
    // This comes last, since it runs code of the user.
    this.#publish(startChannel);
    return this;
  }

  // Listens to the signal, and returns whether the signal is aborted. A signal can run code
  // of the user, which may even start or stop this splice.
  #listen() {
    const listener = addAbortListener(this.#signal, () => this.#stop('aborted'));
    const removeAbortListener = () => guarded(() => listener[SymbolDispose]());
    let aborted;
    try {
      ({ aborted } = this.#signal);
      if (this.#state === 'idle')
        this.#check();
    } catch (err) {
      removeAbortListener();
      throw err;
    }
    if (this.#state === 'idle')
      this.#removeAbortListener = removeAbortListener;
    else
      removeAbortListener();
    return aborted;
  }

  // A splice that belongs to another one is of no interest by itself.
  #publish(channel, error) {
    if (!channel.hasSubscribers || this.#first !== null)
      return;
    const message = { handle: this, socket: this.#socket, stats: this.stats };
    if (error !== undefined)
      message.error = error;
    this.#resource.runInAsyncScope(channel.publish, channel, message);
  }

  #check() {
    const socket = this.#socket;
    const name = this.#name;
    checkSocket(socket, name);
    const wantsIn = this.#directions & kIn;
    const wantsOut = this.#directions & kOut;
    const takeover = socket[kTakeover];
    if ((wantsIn && takeover?.reader) || (wantsOut && takeover?.writer))
      throw new ERR_INVALID_STATE(`This direction of the ${name} is already spliced`);
    if (wantsIn && socket.readableEncoding !== null)
      throw new ERR_INVALID_STATE(`setEncoding() has been called on the ${name}`);
    if (wantsOut && socket.writableEnded)
      throw new ERR_INVALID_STATE(`The ${name} has already been ended`);
    this.#endpoint.check();
    this.#layers = layersOf(socket);
    this.#second?.#check();
  }

  // Takes the directions over. No code of the user runs before the splice has taken all of them.
  #take() {
    const socket = this.#socket;
    debug('splice start, direction %s', kNames[this.#directions]);
    this.#state = 'running';
    this.#forEachLayer(Takeover.watch);
    this.#endpoint.take();
    if (this.#directions & kIn)
      this.#reader = new Reader(socket, this);
    if (this.#directions & kOut) {
      this.#writer = new Writer(socket, this, () => {
        if (this.#waitsForFlush && this.#state === 'running')
          this.#beginOut();
      });
    }
  }

  #beginIfSecure() {
    // A TLSSocket without a tls.Server is `secureConnecting` for ever.
    if (this.#socket._secureEstablished)
      this.#begin();
    else if (this.#socket._readableState.ended)
      this[kOnReadEnd](this.#socket);
  }

  // A socket below may be a proxy of the user's, which may throw.
  #forEachLayer(watchOrUnwatch) {
    for (let i = 0; i < this.#layers.length; i++)
      guarded(() => watchOrUnwatch(this.#layers[i], this));
  }

  [kOnSecure](socket, isUnverified) {
    // A renegotiation emits 'secure' again.
    if (socket !== this.#socket || this.#isSecure || socket.destroyed)
      return;
    if (!isUnverified)
      return this.#begin();
    // The user may have removed the listener that does it. The certificate is not
    // accepted by that.
    const message = 'The certificate of the peer has not been verified';
    this.#fail(new ERR_INVALID_STATE(message), 'tls');
  }

  // The peer has ended. A handshake that needs more of the peer is never done: the socket is
  // destroyed, since a write that waits for the handshake would keep it open for ever.
  [kOnReadEnd](socket) {
    if (socket !== this.#socket || this.#isSecure)
      return;
    // A client of tls.connect() has an error of its own for this, which says more, and comes
    // with 'end'.
    setImmediate(() => {
      if (this.#state === 'running' && !this.#isSecure && !this.#holdsHandshake)
        this.#destroySocket(new ConnResetException('socket hang up'));
    });
  }

  // Whether the handshake waits for a 'newSession' listener of the server, and not for the peer.
  get #holdsHandshake() {
    return this.#socket._newSessionPending || this.#socket._securePending;
  }

  // The pump has its first turn in the next turn of the event loop, so that a listener
  // of 'secure' can still destroy the socket.
  #begin() {
    if (this.#state !== 'running')
      return;
    debug('splice begin, direction %s', kNames[this.#directions]);
    this.#isSecure = true;
    if (this.#onFinal !== null)
      this.#socket[kMaybeDestroy] = undefined;
    // OpenSSL reports an error once, and JavaScript may have had the report.
    this.#tlsError ??= this.#socket._handle[kTLSError] ?? null;
    if (this.#tlsError !== null) {
      // If 'in' is spliced, the endpoint gets what was decrypted before that, and then
      // the native side reports the failure.
      setImmediate(() => {
        if (this.#state === 'running' && !this.#socket[kTakeover]?.reader)
          this.#failTLS();
      });
    }
    for (let i = 1; i < this.#layers.length; i++)
      guarded(() => this.#failIfLayerFailed(this.#layers[i]));
    // Much may have changed during the handshake.
    if (this.#directions & kIn && this.#socket.readableEncoding !== null) {
      const err = new ERR_INVALID_STATE(`setEncoding() has been called on the ${this.#name}`);
      return this.#fail(err, 'tls');
    }
    // While a stream connects, 'in' begins, and holds what the peer sends.
    const { isConnecting } = this.#endpoint;
    if (!isConnecting && !this.#beginEndpoint())
      return;
    if (this.#directions & kIn)
      this.#beginIn();
    if (!isConnecting)
      this.#beginOutWhenFlushed();
    // The user has ended the socket, and no stream has to be connected for that.
    else if (this.#onFinal !== null && this.#state === 'running')
      this.#beginOut();
  }

  // Returns whether the endpoint can be spliced.
  #beginEndpoint() {
    try {
      this.#endpoint.begin();
      return true;
    } catch (err) {
      this.#stop('error', err, 'endpoint');
      return false;
    }
  }

  [kOnEndpointConnect]() {
    // Before the handshake is done there is nothing to do: #begin() does it then.
    if (this.#state !== 'running' || !this.#isSecure)
      return;
    // Both sides had ended before there was a stream to end.
    if (this.#socket.destroyed)
      return this.#endAll();
    if (!this.#beginEndpoint())
      return;
    if (this.#begun & kIn)
      this.#native.setStream(this.#endpoint.handle);
    this.#beginOutWhenFlushed();
    this.#update();
    // The directions may have ended before.
    if (this.#state === 'running')
      this.#giveBackIfEnded();
  }

  #beginOutWhenFlushed() {
    if (this.#state !== 'running' || !(this.#directions & kOut))
      return;
    // What JavaScript has written goes out first, unless it cannot be sent.
    if (this.#writer.isFlushed || NativeSplice.writeError(this.#socket._handle) !== 0)
      this.#beginOut();
    else
      this.#waitsForFlush = true;
  }

  #beginIn() {
    const socket = this.#socket;
    const chunks = this.#reader.take(this.#head);
    this.#head = undefined;
    if (!this.#native.start(socket._handle, kIn, chunks, this.#endpoint.handle))
      return this.#fail(new ERR_SOCKET_CLOSED(), 'tls');
    this.#begun |= kIn;
    // Emits 'end' if JavaScript has read everything but that.
    if (socket._readableState.ended && !socket.readableEnded)
      socket.read(0);
  }

  #beginOut() {
    // The end of the socket may have begun it before the flush did.
    if (this.#begun & kOut)
      return;
    // In a callback of OpenSSL, which can run ticks, the pump is in use, and cannot start.
    if (this.#native.getState() & kBusy) {
      setImmediate(() => {
        if (this.#state === 'running')
          this.#beginOut();
      });
      return;
    }
    const endpoint = this.#endpoint;
    // Much may have happened to a socket while JavaScript's writes were flushed.
    if (endpoint.isGone)
      return this.#stop('error', endpoint.closeError, 'endpoint');
    const { chunks, handle } = endpoint;
    if (!this.#native.start(this.#socket._handle, kOut, chunks ?? [], handle))
      return this.#fail(new ERR_SOCKET_CLOSED(), 'tls');
    endpoint.chunks = null;
    this.#begun |= kOut;
    this.#waitsForFlush = false;
    if (this.#onFinal)
      this.#native.leaveSource();
  }

  // The native side has changed its state.
  #update() {
    if (this.#isGivenBack || this.#state === 'idle')
      return;
    const state = this.#native.getState();
    // In a callback of OpenSSL, which can run ticks, the state is not final. The native side calls
    // this function again.
    if (state & kBusy)
      return;
    if (state & kTLSFailed) {
      this.#failTLS();
    } else if (this.#state === 'stopping') {
      this.#giveBackStopped(state);
    } else if (state & kEndpointFailed) {
      this.#stopWithFailure();
    } else {
      // There is no stream to end before it is connected.
      if (state & kInOver && !this.#endpoint.isConnecting)
        this.#onInEnded();
      if (state & kOutOver)
        this.#onOutEnded();
      if (state & kEndpointClosed)
        this.#stopUnlessEnded();
    }
  }

  // Whether the endpoint has failed. If so, that is the reason for the end of the splice, even
  // if the splice is stopped before JavaScript has heard of the failure.
  get #hasFailure() {
    const state = this.#native.getState();
    return this.#state === 'running' && (state & kEndpointFailed) !== 0 && !(state & (kBusy | kTLSFailed));
  }

  #stopWithFailure() {
    const failure = this.#native.getFailure();
    if (failure === undefined)
      this.#failTLS();
    else
      this.#endWithFailure(failure, (error, side) => this.#stop('error', error, side));
  }

  // Makes an error of what getFailure() has returned. Calls `end` with the error and the side
  // that has failed.
  #endWithFailure({ 0: err, 1: syscall, 2: direction, 3: offset }, end) {
    if (err !== 0) {
      this.#endpoint.isDead = syscall === 'read';
      return end(errorOf(err, syscall), 'endpoint');
    }
    // The side that has failed is the one that has sent the bytes.
    end(new ERR_TLS_SPLICE_FRAMING(kNames[direction], offset),
        direction === kIn ? 'tls' : 'endpoint');
  }

  // The peer has ended, JavaScript knows, and the endpoint has every byte.
  #onInEnded() {
    if (this.#ended & kIn)
      return;
    this.#ended |= kIn;
    this.#endpoint.unguard();
    // Between two joined splices the end is always passed on. Whether the other socket is ended
    // is for the `end` option of its own splice.
    if (this.#endsOther || this.#first !== null || this.#second !== null)
      this.#endpoint.shutdown();
    // The end() of the stream may be the user's, and may have destroyed the socket. Then the
    // reader has given the end.
    if (this.#isGivenBack)
      return;
    this.#reader.giveEnd();
    // A 'readable' listener may have destroyed the socket, too.
    if (this.#isGivenBack)
      return;
    this.#giveBackIfEnded();
    this.#socket[kTakeover]?.writer?.splice.#failIfStuck();
    this.#endIfClosedBelow();
  }

  // The endpoint has ended, or the user has called end(), and the stream below the
  // socket has every byte.
  #onOutEnded() {
    if (this.#ended & kOut)
      return;
    // If `#onFinal` is set, the user has ended the socket: the endpoint may not be at its end.
    this.#endpoint.isAtEnd = this.#onFinal === null;
    const onEnded = () => {
      this.#ended |= kOut;
      this.#giveBackIfEnded();
      if (this.#first?.#state === 'running')
        this.#first.#giveBackIfEnded();
    };
    if (this.#onFinal) {
      const onFinal = this.#onFinal;
      this.#onFinal = null;
      onFinal();
      onEnded();
    } else if (!this.#endsOther) {
      this.#giveBackOut();
      onEnded();
    } else if (this.#socket.writableFinished) {
      // The user has called end(), and the socket has finished, before JavaScript was told
      // that the endpoint has ended.
      onEnded();
    } else if (!this.#isEnding) {
      this.#isEnding = true;
      end(this.#socket, (err) => {
        if (!err)
          onEnded();
      });
    }
  }

  // A stream that has yet to connect may fail, and then the splice fails, too. So a splice waits
  // for the stream to connect before it ends.
  #giveBackIfEnded() {
    if (this.#endpoint.isConnecting)
      return;
    const second = this.#second;
    // The other TLSSocket may still have to send what it got.
    const isSending = second && !second.#isGivenBack &&
                      (second.#directions & ~second.#ended & kOut) !== 0;
    if (!(this.#directions & ~this.#ended) && !isSending)
      this.#giveBack('end');
  }

  #onSecondGivenBack() {
    const second = this.#second;
    const { reason, error } = second.#outcome;
    if (this.#state !== 'running')
      return this.#closeIfReady();
    // Everything may have been passed on, but not sent.
    const isSent = (second.#directions & ~second.#ended & kOut) === 0;
    if (reason === 'end' || isSent)
      this.#giveBackIfEnded();
    if (this.#state === 'running' && reason !== 'end')
      this.#stop('error', error ?? new ERR_STREAM_PREMATURE_CLOSE(), 'endpoint');
    // If the second splice has ended, its socket may still be open for reading.
    else if (this.#endpoint.isClosed)
      this.#stopUnlessPeerKnows();
  }

  [kOnEndpointClose]() {
    // As long as the second splice has its socket, #onSecondGivenBack() is to come.
    if (this.#second === null)
      this.#stopUnlessEnded();
    else if (this.#second.#isGivenBack)
      this.#stopUnlessPeerKnows();
    this.#closeIfReady();
  }

  // The other TLSSocket has ended both ways. So 'out' ends in any case, and nobody takes what
  // 'in' brings. If the peer is told that 'out' has ended, it will end 'in'; otherwise the
  // splice has to stop.
  #stopUnlessPeerKnows() {
    const isTold = (this.#directions & kOut && this.#endsOther) || this.#socket.writableEnded;
    if (this.#directions & kIn && !isTold)
      this.#stopUnlessEnded();
  }

  // The endpoint is gone, which is a failure unless both directions have ended, and one in
  // any case if it was never connected.
  #stopUnlessEnded() {
    const ended = this.#ended | directionsOf(this.#native.getState(), 0, kOutOver);
    if (this.#state === 'running' && (this.#directions & ~ended || this.#endpoint.isConnecting))
      this.#stop('error', this.#endpoint.closeError, 'endpoint');
  }

  /**
   * Stops the splice, started or not, and gives the socket back within two seconds.
   * @returns {Promise<object>} The same one each time. It resolves with the stats when
   *   the splice has closed, and never rejects.
   */
  stop() {
    this.#outcome.isAwaited = true;
    this.#stopped ??= PromisePrototypeThen(this.#outcome.promise, undefined,
                                           () => this.stats);
    this.#stop('stopped');
    return this.#stopped;
  }

  async [SymbolAsyncDispose]() {
    await this.stop();
  }

  #stop(reason, error, side) {
    // A splice that has ended may wait for its endpoint to write: stop() ends this wait.
    if (this.#state === 'returning' || this.#state === 'closing')
      this.#closeEndpointNow();
    if (this.#isGivenBack || this.#state === 'stopping')
      return;
    if (error === undefined && this.#hasFailure)
      return this.#stopWithFailure();
    debug('splice stop, reason %s', reason);
    this.#state = 'stopping';
    this.#outcome.set(reason, error, side);
    if (this.#begun === 0 && !this.#holdsHead)
      return this.#giveBack();
    this.#native.stop();
    this.#stopWriting();
    this.#closeEndpointNow();
    // The caller does not expect 'data' from inside this call.
    process.nextTick(() => this.#update());
  }

  // JavaScript that reads what is given back may answer, and write to either socket.
  #stopWriting() {
    this.#writer?.stop();
    this.#second?.#writer?.stop();
  }

  #giveBackStopped(state) {
    const stopped =
      directionsOf(state, kInStopped | kInOver, kOutStopped | kOutOver);
    if (stopped & kIn)
      this.#giveBackIn();
    // The readers of the socket may have stopped or destroyed anything.
    if (this.#isGivenBack)
      return;
    // A write has failed with bytes that the splice had read, so that the splice reports it.
    if (this.#native.getState() & kTLSFailed)
      return this.#failTLS();
    // With a destroyed socket there is nothing to wait for.
    if (this.#socket.destroyed || !(this.#begun & ~stopped))
      this.#giveBack();
    else
      this.#startStopTimer();
  }

  #giveBackIn() {
    const socket = this.#socket;
    if (!this.#reader?.isAttached)
      return;
    // A stream of JavaScript below is stopped by calling its pause(), which is the user's, and
    // must not start another splice before the bytes are given back.
    const bytes = this.#begun & kIn ? this.#native.release(kIn) : undefined;
    if (!this.#reader.detach())
      return;
    if (!(this.#begun & kIn))
      return this.#giveBackHead();
    // The readers of the socket may write to the endpoint.
    this.#endpoint.unguard();
    this.#reader.giveBack(bytes, () => {
      // Readers that have yet to take the bytes get a turn of the event loop before
      // anything that comes next, which may be an error that destroys the socket.
      const isLater = socket.readableLength > 0;
      if (socket._handle)
        guarded(() => this.#native.resume(isLater));
    });
    // If the peer has ended, nothing else tells the splice that has 'out' of the failure of a
    // TLSSocket below. resume() gives JavaScript that end before this callback runs.
    if (socket._parent?.encrypted)
      setImmediate(() => socket[kTakeover]?.writer?.splice.#failIfStuck());
  }

  // The splice was started, and 'in' has not begun, so that JavaScript has all but the head.
  get #holdsHead() {
    return this.#reader !== null && this.#head !== undefined;
  }

  #giveBackHead() {
    if (!this.#holdsHead)
      return;
    const head = this.#head;
    this.#head = undefined;
    this.#stopWriting();
    this.#endpoint.unguard();
    // The user may have transferred the memory.
    if (head.length > 0)
      this.#reader.unshift(head);
  }

  #giveBackOut() {
    const { _handle: handle } = this.#socket;
    if (!this.#writer?.detach())
      return;
    let unflushed = 0;
    if (this.#begun & kOut) {
      this.#native.release(kOut);
      // Bytes that cannot be sent any more are not waited for. The reason is reported
      // behind the bytes that were read before.
      if (handle && NativeSplice.writeError(handle) === 0)
        unflushed = NativeSplice.unflushed(handle);
    }
    this.#writer.unguard(unflushed);
  }

  // TLS, or the stream below, has failed. The socket is destroyed with the error unless
  // it has emitted it, and that ends the splice, see kOnDestroy.
  #failTLS() {
    const socket = this.#socket;
    // When the socket was destroyed, the splice waited for the other TLSSocket.
    if (socket.destroyed) {
      if (this.#state === 'stopping')
        this.#giveBack();
      else
        this.#fail(this.#tlsError ?? new ERR_SOCKET_CLOSED(), 'tls');
      return;
    }
    if (this.#tlsError !== null)
      return this.#destroySocket();
    try {
      const failure = this.#native.getFailure();
      if (failure === undefined)
        this.#tlsError = new ERR_INTERNAL_ASSERTION('The Rust core of the splice has panicked');
      else if (failure[0] !== 0)
        this.#tlsError = new ErrnoException(failure[0], failure[1]);
    } catch (err) {
      this.#tlsError = err;
    }
    this.#destroySocket(this.#tlsError);
  }

  // destroy() tells the splice, unless the user has replaced it.
  #destroySocket(err) {
    guarded(() => this.#socket.destroy(err));
    if (this.#isGivenBack || this.#socket.destroyed)
      return;
    if (this.#state === 'stopping')
      this.#giveBack();
    else
      this.#fail(this.#tlsError ?? this.#layerError ?? new ERR_SOCKET_CLOSED(), 'tls');
  }

  #fail(error, side) {
    this.#giveBack('error', error, side);
  }

  // TLS has failed. The TLSSocket emits 'error', but may not be destroyed.
  [kOnTLSError](socket, err) {
    if (this.#tlsError !== null)
      return;
    if (socket === this.#socket) {
      this.#tlsError = err;
      process.nextTick(() => this.#onTLSError());
      return;
    }
    this.#failWithLayer(err);
  }

  #onTLSError() {
    if (this.#state !== 'running' && this.#state !== 'stopping')
      return;
    // In a callback of OpenSSL, which can run ticks, the pump cannot be given back.
    if (this.#native.getState() & kBusy)
      setImmediate(() => this.#onTLSError());
    else
      this.#failTLS();
  }

  // A TLSSocket that this socket runs over may have failed before the splice.
  #failIfLayerFailed(layer) {
    const err = layer._handle?.[kTLSError];
    if (err)
      this.#failWithLayer(err);
  }

  // A TLSSocket that this socket runs over has failed, and Node.js tells nobody else.
  #failWithLayer(err) {
    // The next turn of the event loop is outside of that TLSSocket's call of OpenSSL.
    setImmediate(() => {
      if (this.#state !== 'running')
        return;
      this.#layerError = err;
      if (this.#begun) {
        this.#native.failBelow();
        this.#failIfStuck();
      } else {
        this.#tlsError ??= err;
        this.#destroySocket(this.#tlsError);
      }
    });
  }

  // Node.js never calls back a write that waits behind a failed TLSSocket below, and reads
  // nothing from it. If 'in' is over, and 'out' waits to begin, or would have to send, then
  // nothing else tells the splice that the peer cannot be reached. A splice without 'out' is
  // not concerned.
  #failIfStuck() {
    if (this.#layerError === null || this.#state !== 'running' ||
        this.#directions & ~this.#ended & kIn || !(this.#directions & kOut)) {
      return;
    }
    // A splice with 'out' alone is told of the failure by failBelow(), unless the TLSWrap has
    // given JavaScript the end of the socket.
    const hears = !(this.#directions & kIn) && !this.#socket._readableState.ended;
    if (!this.#waitsForFlush && (hears || this.#native.getState() & kOutOver))
      return;
    this.#tlsError ??= this.#layerError;
    this.#destroySocket(this.#tlsError);
  }

  // The stream below has ended and closed, and Node.js would now destroy the socket. Returns
  // whether a splice of 'in' has yet to deliver something, or has 'out', too. Then the splice destroys
  // the socket when it has closed.
  [kOnCloseBelow]() {
    // The other TLSSocket may still have to send what it got.
    const isPassingOn = this.#second !== null && !this.#second.#isGivenBack;
    const isAtWork = this.#state !== 'closed' && !this.#socket.destroyed && (this.#begun & kIn) !== 0 &&
                     ((this.#directions & ~this.#ended) !== 0 || isPassingOn);
    if (isAtWork) {
      this.#closedBelow = this.#socket._handle;
      this.#endIfClosedBelow();
    }
    return isAtWork;
  }

  // When 'in' has ended, 'out' ends, too, since nothing can be sent any more.
  #endIfClosedBelow() {
    const isOutOpen = (this.#directions & ~this.#ended & kOut) !== 0 && !this.#socket.writableEnded;
    if (this.#closedBelow !== null && this.#ended & kIn && isOutOpen && !this.#isGivenBack)
      guarded(() => this.#socket.end());
  }

  // JavaScript gets a turn of the event loop for what it has been given, and may start the
  // next splice, which has to see to this then.
  #destroyIfClosedBelow() {
    const handle = this.#closedBelow;
    if (handle === null)
      return;
    this.#closedBelow = null;
    const socket = this.#socket;
    setImmediate(() => {
      // The user may have connected the socket again.
      if (socket._handle === handle && !socket[kTakeover]?.delayDestroy())
        guarded(() => socket.destroy());
    });
  }

  // Called by tlsSocket._destroy(): not one more byte moves.
  [kOnDestroy](socket, err) {
    if (socket !== this.#socket)
      return;
    if (this.#isGivenBack) {
      // A socket that has ended both directions has closed itself. That is no reason
      // not to let the endpoint write what it has.
      if (err || !socket.readableEnded || !socket.writableFinished)
        this.#closeEndpointNow();
      return;
    }
    if (this.#state === 'stopping')
      return this.#giveBack();
    // The endpoint may have failed before the user destroyed the socket.
    const failure = this.#hasFailure ? this.#native.getFailure() : undefined;
    if (failure !== undefined)
      return this.#endWithFailure(failure, (error, side) => this.#fail(error, side));
    const state = this.#native.getState();
    if (state & kTLSFailed || this.#tlsError !== null ||
        (err && (state & kTLSFailing || this.#begun === 0))) {
      return this.#fail(this.#tlsError ?? err ?? (this.#first ?
        new ERR_STREAM_PREMATURE_CLOSE() : new ERR_SOCKET_CLOSED()), 'tls');
    }
    // A direction has ended if JavaScript has seen the end of it, even if the pump has
    // not had its turn.
    let ended = directionsOf(state, kInOver, kOutOver);
    if (socket.readableEnded)
      ended |= kIn;
    if (!(this.#begun & kOut) && socket.writableFinished)
      ended |= kOut;
    // 'out' has ended, but the end cannot be sent to the peer any more.
    if (err && state & kCutOff && this.#directions & ~this.#ended & kOut)
      return this.#fail(err, 'tls');
    if (err || this.#directions & ~ended)
      return this.#giveBack('destroyed', err, 'tls');
    // Both sides have ended during the handshake.
    if (!this.#isSecure)
      return this.#fail(new ConnResetException('socket hang up'), 'tls');
    // The native side would report the end of the TLSWrap as a failure.
    const undelivered = this.#native.release(kIn | kOut);
    // The endpoint does not get these bytes any more: that is no end of 'in'. Nor is it one
    // while a thread has bytes that a file may not take.
    if (undelivered !== undefined || state & kWriting)
      return this.#giveBack('destroyed');
    if (!this.#endpoint.isConnecting)
      this.#endAll();
  }

  // The socket has ended both directions, and was destroyed.
  #endAll() {
    this.#ended |= kOut;
    if (this.#directions & kIn)
      this.#onInEnded();
    this.#giveBackIfEnded();
  }

  // Called by tlsSocket._final(). Sends what is held, and then calls back.
  [kOnFinal](callback) {
    if (this.#isCutOff || this.#ended & kOut || this.#native.getState() & kOutOver)
      return callback();
    this.#onFinal = callback;
    // Node.js calls this function when the peer has ended. The user could remove a
    // listener of 'end'.
    if (!this.#isSecure)
      this.#socket[kMaybeDestroy] = () => this.#callOnFinalIfCutOff();
    if (this.#begun & kOut)
      this.#native.leaveSource();
    // What JavaScript has written is flushed, and no stream has to be connected for an end.
    else if (this.#isSecure && this.#state === 'running')
      this.#beginOut();
  }

  // If the peer has ended during the handshake, nothing can ever be sent.
  get #isCutOff() {
    return !this.#isSecure && this.#socket.readableEnded;
  }

  #callOnFinalIfCutOff() {
    const onFinal = this.#onFinal;
    this.#socket[kMaybeDestroy] = undefined;
    if (onFinal === null || !this.#isCutOff)
      return;
    this.#onFinal = null;
    onFinal();
  }

  // The TLSWrap is about to get what JavaScript had written before the splice. A TLSWrap
  // that has failed to send something of its own, such as tickets, never calls a write back.
  [kOnWrite](socket) {
    const { _handle: handle } = socket;
    if (socket !== this.#socket || !this.#waitsForFlush || !handle ||
        NativeSplice.writeError(handle) === 0) {
      return;
    }
    setImmediate(() => {
      if (this.#state === 'running')
        this.#beginOut();
    });
  }

  // JavaScript has written nothing to a guarded socket, which lets TLS send its own
  // messages. Returns false if that is done as without a splice.
  [kOnEmptyWrite](socket) {
    if (socket !== this.#socket || !(this.#begun & kOut))
      return false;
    this.#native.scheduleTurn();
    return true;
  }

  // When bytes last moved, in milliseconds of the event loop's clock; 0 once no bytes move any
  // more.
  get [kLastMove]() {
    return this.#isGivenBack ? 0 : this.#readStats()[kLastActivity];
  }

  // Gives everything back, with the outcome that was set before if there is none.
  #giveBack(reason = this.#outcome.reason, error, side) {
    if (this.#isGivenBack)
      return;
    const socket = this.#socket;
    this.#state = 'returning';
    this.#outcome.set(reason, error, side);
    this.#counters = copyOf(this.#readStats());
    // This comes first: bytes that the endpoint does not write any more do not count,
    // and are given back.
    if (reason !== 'end')
      this.#closeEndpointNow();
    if (socket.destroyed) {
      // It is enough to close the native side, which may be in the middle of a call.
      this.#reader?.detach();
      this.#writer?.detach();
      this.#writer?.unguard();
    } else {
      this.#giveBackIn();
      this.#giveBackOut();
      Takeover.restartIdleTime(socket);
    }
    this.#native.close();
    this.#endpoint.giveBack();
    this.#second?.#stop('stopped');
    const onFinal = this.#onFinal;
    this.#onFinal = null;
    // The socket can end all the same if the endpoint has failed.
    onFinal?.(socket.destroyed ? this.#outcome.error ?? new ERR_SOCKET_CLOSED() : null);
    this.#native.onchange = () => this.#closeIfReady();
    this.#state = 'closing';
    this.#closeIfReady();
    this.#first?.#onSecondGivenBack();
  }

  // Closes unless there is something to wait for: a call of the pump, the transfer of a
  // file, the splice of the other TLSSocket, or the 'close' of the endpoint.
  #closeIfReady() {
    const { autoClose, isClosed } = this.#endpoint;
    if (this.#state !== 'closing')
      return;
    if (this.#second !== null && this.#second.#state !== 'closed')
      return;  // That splice has a timer of its own.
    const state = this.#native.getState();
    // In a callback of OpenSSL, which can run ticks, the pump keeps its descriptors.
    if (state & kBusy)
      setImmediate(() => this.#closeIfReady());
    else if (this.#isLate)
      this.#close();
    else if (state & kTransferring)
      this.#startStopTimer();
    else if (autoClose && !isClosed)
      this.#endpoint.close(() => this.#closeEndpointNow());
    else
      this.#close();
  }

  #closeEndpointNow() {
    if (this.#endpoint.closeNow())
      this.#startStopTimer();
  }

  #close() {
    if (this.#state === 'closed')
      return;
    debug('splice close, reason %s', this.#outcome.reason);
    this.#state = 'closed';
    clearTimeout(this.#stopTimer);
    this.#forEachLayer(Takeover.unwatch);
    this.#endpoint.unwatch();
    this.#destroyIfClosedBelow();
    // This comes last, since the signal can run code of the user.
    this.#removeAbortListener?.();
    process.nextTick(() => this.#resource.runInAsyncScope(this.#emitClose, this));
    this.#first?.#closeIfReady();
  }

  // Two joined splices have one limit of time. The second splice is stopped when the first
  // has given its socket back, and then has what is left of that time.
  #startStopTimer() {
    if (this.#stopTimer !== null)
      return;
    this.#stopBegun = this.#first?.#stopBegun ?? timersBinding.getLibuvNow();
    const rest = MathMax(this.#stopBegun + kStopTimeout - timersBinding.getLibuvNow(), 1);
    this.#stopTimer = setTimeout(() => {
      // If the event loop was busy, what is waited for may have come meanwhile.
      setImmediate(() => setImmediate(() => this.#onStopTimeout()));
    }, rest);
  }

  // The splice has waited for something that may never come.
  #onStopTimeout() {
    this.#update();
    if (this.#state === 'closed')
      return;
    this.#isLate = true;
    const state = this.#native.getState();
    // The thread of a transfer keeps the memory and the descriptor that it needs.
    this.#native.abandon();
    if (this.#state === 'closing')
      return this.#closeIfReady();
    // Nobody knows how much of a write a file will get. The peer can neither get the
    // bytes that are held for it, nor do without them. A read can be given up.
    if (state & kWriting || !(state & kTransferring)) {
      const err = state & kWantsHandshake && !(state & kWriting) ?
        new ERR_TLS_HANDSHAKE_TIMEOUT() : new ErrnoException(UV_ETIMEDOUT, 'write');
      guarded(() => this.#socket.destroy(err));
    }
    // A socket that is destroyed tells the splice, which has given it back then.
    this.#giveBack();
  }

  #emitClose() {
    this.#counters = copyOf(this.#readStats());
    const { stats } = this;
    const { error } = this.#outcome;
    this.#outcome.settle(stats);
    // A splice that was stopped before it was started has taken nothing.
    if (this.#reader !== null || this.#writer !== null) {
      if (error)
        this.#publish(errorChannel, error);
      this.#publish(endChannel);
    }
    if (error && (!this.#outcome.isAwaited || this.listenerCount('error') > 0)) {
      let hasThrown = true;
      try {
        this.emit('error', error);
        hasThrown = false;
      } finally {
        // The exception is reported before 'close' is emitted, which may throw, too.
        if (hasThrown)
          process.nextTick(() => this.emit('close', stats));
      }
    }
    this.emit('close', stats);
  }

  /** @returns {this} The endpoint keeps the event loop alive, which is the default. */
  ref() {
    this.#native.ref();
    this.#endpoint.stream?.ref();
    return this;
  }

  /** @returns {this} The endpoint does not keep the event loop alive. */
  unref() {
    this.#native.unref();
    this.#endpoint.stream?.unref();
    return this;
  }

  [inspect.custom](depth, options) {
    if (depth < 0)
      return this;
    const { state, stats } = this;
    depth = options.depth == null ? null : options.depth - 1;
    return `TLSSplice ${inspect({ state, stats }, { ...options, depth })}`;
  }
}

/**
 * Prepares to join this TLSSocket to an endpoint. Nothing moves before start(). With
 * `autoClose` the splice owns the endpoint from now on.
 * @param {object} options See doc/api/tls.md.
 * @returns {TLSSplice}
 * @throws {Error} If an option, or the state of a socket, does not allow it; system
 *   errors such as EBADF.
 */
function spliceTo(options) {
  checkAvailable(this);
  return createSplice(this, validateOptions(this, options));
}

// Checks that the `this` of a method can be spliced at all.
function checkAvailable(socket) {
  if (socket?.encrypted !== true || !(socket instanceof net.Socket))
    throw new ERR_INVALID_THIS('TLSSocket');
  if (NativeSplice === undefined)
    throw new ERR_FEATURE_UNAVAILABLE_ON_PLATFORM('tlsSocket.spliceTo()');
  emitExperimentalWarning('tlsSocket.spliceTo()');
}

function createSplice(socket, validated) {
  return new TLSSplice(kCreate, socket, openNative(validated), validated);
}

function ignoreError() {}

// Listens to 'error' of the sockets, and ignores what they emit: whoever awaits a promise that
// reports these errors does not have to listen as well. Returns a function that ends this after
// the next tick, in which a socket emits the error that it was destroyed with, unless the user has
// replaced _destroy().
function ignoreErrors(sockets) {
  const forEach = (method) => {
    for (let i = 0; i < sockets.length; i++)
      guarded(() => sockets[i][method]('error', ignoreError));
  };
  forEach('on');
  return async () => {
    const { promise, resolve } = PromiseWithResolvers();
    process.nextTick(resolve);
    await promise;
    forEach('removeListener');
  };
}

// Resolves with the stats of a splice that has started when both sides have ended. In any
// other case, destroys the socket with the error and rejects, as stream.pipeline() does.
async function runToEnd(splice, socket, signal) {
  let abortError;
  const getAbortError = () => {
    abortError ??= new AbortError(undefined, { cause: signal.reason });
    return abortError;
  };
  const destroySocket = (err) => {
    // Anybody may have removed the listener, and a _destroy() of the user's may take its time.
    if (!socket.closed) {
      guarded(() => socket.on('error', ignoreError));
      guarded(() => socket.once('close', () => socket.removeListener('error', ignoreError)));
    }
    socket.destroy(err);
  };
  const destroyIfAborted = () => {
    // A splice that has ended may still wait for its endpoint to close.
    if (splice.stats.reason === 'aborted')
      destroySocket(getAbortError());
  };
  let listener;
  try {
    listener = signal && addAbortListener(signal, destroyIfAborted);
    const stats = await splice.finished;
    if (stats.reason === 'end')
      return stats;
    if (stats.reason === 'aborted')
      throw ObjectAssign(getAbortError(), { stats });
    const err = new ERR_STREAM_PREMATURE_CLOSE();
    // The reason 'stopped' is possible, too: a subscriber of a diagnostics channel can call stop().
    throw stats.reason === 'destroyed' ? ObjectAssign(err, { side: 'tls' }) : err;
  } catch (err) {
    destroySocket(err);
    throw err;
  } finally {
    guarded(() => listener?.[SymbolDispose]());
  }
}

// The error of pipeToNative() when there is no splice: one of the sockets may have been
// destroyed with an error, which says more than that the socket is closed.
function startErrorOf(err, socket, sockets) {
  if (err?.code !== 'ERR_SOCKET_CLOSED')
    return err;
  const failed = ArrayPrototypeFind(sockets, ({ errored }) => errored);
  if (failed === undefined)
    return err;
  setSide(failed.errored, failed === socket ? 'tls' : 'endpoint');
  return failed.errored;
}

/**
 * Splices this TLSSocket to an endpoint until both have ended. With `autoClose` the
 * endpoint is closed in any case.
 * @param {number|FileHandle|net.Socket} target The `fd` or the `stream` option of
 *   spliceTo().
 * @param {object} [options] The other options.
 * @returns {Promise<object>} The stats. Rejects with what spliceTo() and start() throw.
 *   Otherwise destroys the socket with the error that it rejects with: that of the splice,
 *   an AbortError, which has the stats, or ERR_STREAM_PREMATURE_CLOSE if the socket was
 *   destroyed without an error. Until the promise is settled, neither the socket nor the
 *   target needs a listener for 'error'.
 */
async function pipeToNative(target, options = kEmptyObject) {
  const sockets = ArrayPrototypeFilter([this, target], (value) => value instanceof net.Socket);
  const heedErrors = ignoreErrors(sockets);
  let splice;
  let validated;
  let autoClose = false;
  try {
    try {
      // Before anything can be found to be wrong.
      autoClose = options?.autoClose === true;
      checkAvailable(this);
      validated = validateArguments(this, target, options);
      splice = createSplice(this, validated);
      splice.start();
    } catch (err) {
      // A splice closes an endpoint with `autoClose` itself.
      if (splice !== undefined)
        await splice.stop();
      else if (autoClose)
        await closeTarget(this, target);
      throw startErrorOf(err, this, sockets);
    }
    return await runToEnd(splice, this, validated.signal);
  } finally {
    await heedErrors();
  }
}

module.exports = { TLSSplice, afterWrap, beforeWrap, pipeToNative, spliceTo };
