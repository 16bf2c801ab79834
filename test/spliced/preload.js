'use strict';

// Preloaded into Node's own tests: joins each TLSSocket, once its handshake is done, to one end of a pair of sockets,
// by a splice or, as the control, by pipeline(). The test keeps its TLSSocket, but reads and writes the other end of
// the pair with it.
//
//     test <-> its TLSSocket <-> front ... back <-> hidden TLSSocket <-> TLSWrap <-> network
//
// SPLICED_BY is `splice` or `pipeline`. The file SPLICED_LOG gets a line for each TLSSocket: that it was joined, or why
// not. What a TLSSocket is made of is reached from outside, and so this file follows lib/internal/tls/wrap.js.

const fs = require('fs');
const net = require('net');
const tls = require('tls');
const { pipeline } = require('stream/promises');
const { threadId } = require('worker_threads');

const { TLSSocket } = tls;
const { Socket } = net;

// --- Pairs of sockets -----------------------------------------------------------------------------------------------

const address = `\0tls-splice-${process.pid}-${threadId}`;
const waiting = [];
let listener;

// Those who connect are accepted in that order.
function pair(callback) {
  listener ??= net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (back) => waiting.shift()(back))
    .listen(address)
    .unref();
  const front = net.connect(address);
  // Not one byte before it is another socket's.
  front.pause();
  Promise.all([
    new Promise((resolve) => front.once('connect', resolve)),
    new Promise((resolve) => waiting.push(resolve)),
  ]).then(({ 1: back }) => {
    const handle = front._handle;
    front._handle = null;
    callback(handle, back);
  });
}

// --- The hidden TLSSocket -------------------------------------------------------------------------------------------

const isOwn = Symbol('is of this file');

function symbolOf(object, description) {
  return Object.getOwnPropertySymbols(object).find((symbol) => symbol.description === description);
}

// What the constructor of TLSSocket, and the handshake, make of a net.Socket.
const ofTLSSocket = new Set([
  '_SNICallback', '_controlReleased', '_newSessionPending', '_parent', '_rejectUnauthorized', '_requestCert',
  '_secureEstablished', '_securePending', '_tlsOptions', 'alpnProtocol', 'authorizationError', 'authorized',
  'encrypted', 'server', 'servername', 'ssl', 'connect-options', 'disable-renegotiation', 'pendingSession', 'res',
  'verified', 'alpncallback', 'pskcallback',
]);

// A TLSSocket with the TLSWrap of `socket`.
function takeOver(socket) {
  const hidden = Reflect.construct(Socket, [{
    handle: socket._handle, allowHalfOpen: true, manualStart: true,
  }], TLSSocket);
  for (const key of Reflect.ownKeys(socket)) {
    if (ofTLSSocket.has(key.description ?? key))
      hidden[key] = socket[key];
  }
  hidden[isOwn] = true;
  hidden.secureConnecting = false;
  // What frees the SSL when the socket has closed: now the hidden one.
  for (const free of socket.listeners('close').filter(({ name }) => name === 'onSocketCloseDestroySSL')) {
    socket.removeListener('close', free);
    hidden.on('close', free);
  }
  for (const event of ['keylog', 'session', 'OCSPResponse'])
    hidden.on(event, (...args) => socket.emit(event, ...args));
  hidden.on('error', (err) => socket.destroy(err));
  return hidden;
}

// What the test asks of its TLSSocket, the TLSWrap answers, unless it is about bytes.
function delegate(front, hidden) {
  const wrap = hidden._handle;
  for (let from = wrap; from !== Object.prototype; from = Object.getPrototypeOf(from)) {
    for (const name of Object.getOwnPropertyNames(from)) {
      if (!(name in front) && typeof wrap[name] === 'function')
        front[name] = (...args) => (hidden._handle ? wrap[name](...args) : undefined);
    }
  }
  front.renegotiate = () => {
    wrap.renegotiate();
    // For OpenSSL to take notice.
    hidden.write('');
  };
  front.destroySSL = () => {};
  front._secureContext = { context: wrap._secureContext.context };
  front._parent = wrap._parent;
  front._parentWrap = wrap._parentWrap;
}

// Not with a warning that a test does not expect.
function spliced(hidden, back) {
  const { emitWarning } = process;
  process.emitWarning = () => {};
  try {
    return hidden.pipeToNative(back);
  } finally {
    process.emitWarning = emitWarning;
  }
}

const joins = {
  splice: spliced,
  pipeline: (hidden, back) => Promise.all([pipeline(hidden, back), pipeline(back, hidden)]),
};
const join = joins[process.env.SPLICED_BY];

function interpose(socket, front, back) {
  const hidden = takeOver(socket);
  delegate(front, hidden);
  for (const name of ['ref', 'unref']) {
    const own = front[name];
    front[name] = () => {
      own.call(front);
      hidden[name]();
      back[name]();
    };
  }
  const { close } = front;
  front.close = (callback) => {
    // What it has written goes on its way, if it has been ended.
    if (!socket.writableFinished || hidden.writableFinished)
      hidden.destroy();
    else
      hidden.once('finish', () => hidden.destroy());
    close.call(front, callback);
  };
  front[symbolOf(hidden._handle, 'owner_symbol')] = socket;
  front.onread = hidden._handle.onread;
  front.reading = socket._handle.reading;
  // The hidden one starts to read when it is asked to.
  socket._handle.reading = false;
  socket._handle = front;
  socket.ssl = front;
  back.on('error', () => {});
  join(hidden, back).catch(() => {}).finally(() => {
    hidden.destroy();
    back.destroy();
  });
  if (front.reading)
    front.readStart();
  return hidden;
}

// --- Every TLSSocket ------------------------------------------------------------------------------------------------

// When what it has written is on its way: TLSWrap has it no longer.
function whenFlushed(socket, callback) {
  if (socket.writableLength === 0)
    callback();
  else
    socket.write('', callback);
}

// Why it cannot be joined, if it cannot.
function obstacleOf(socket) {
  if (socket.destroyed || !socket._handle)
    return 'is closed';
  if (socket.writableEnded)
    return 'has ended writing';
  if (socket._readableState.ended)
    return 'has been read to its end';
  // TLSWrap cannot be told to forget it.
  if (socket[symbolOf(socket, 'kBuffer')])
    return 'is read into a buffer of the test';
}

const { appendFileSync } = fs;

function log(line) {
  try {
    appendFileSync(process.env.SPLICED_LOG, `${line}\n`);
  } catch {
    // The test has the permission model, or has changed the environment.
  }
}

const seen = Symbol('has had its handshake');

// Calls it before any listener of 'secure' knows that the handshake is done.
TLSSocket.prototype.emit = function(event, ...args) {
  if (event !== 'secure' || this[seen] || this[isOwn])
    return Socket.prototype.emit.call(this, event, ...args);
  this[seen] = true;
  // Otherwise an end that the peer sends at once would close it before the pair is there.
  this._handle?.readStop();
  pair((front, back) => {
    whenFlushed(this, () => {
      const obstacle = obstacleOf(this);
      log(obstacle ?? 'joined');
      if (obstacle !== undefined) {
        this._handle?.readStart();
        front.close();
        back.destroy();
        Socket.prototype.emit.call(this, event, ...args);
        return;
      }
      const hidden = interpose(this, front, back);
      Socket.prototype.emit.call(this, event, ...args);
      // Whether the certificate was good, and sessions may be told of.
      const verified = symbolOf(this, 'verified');
      hidden[verified] = this[verified];
    });
  });
  return true;
};
