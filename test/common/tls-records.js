'use strict';

// A peer of TLS that sends what no TLSSocket would: alerts, records without
// content, records that cannot be decrypted, at the place that a test wants.
//
//   const tap = new RecordTap(socket);       // A connected net.Socket
//   const peer = tls.connect({ socket: tap, ... });     // Or new TLSSocket(tap)
//   tap.follow(peer);
//   ...                                      // `peer` writes something
//   tap.send(tap.data('text'), tap.alert(kFatal, alerts.internal_error));
//   tap.raw.end();
//
// The TLSSocket does not notice, and can go on: what it writes afterwards is
// encrypted anew, with the sequence numbers that it has got by then.
//
// TLS 1.2 and 1.3 with AES-GCM, which is what Node's defaults come to. After a
// renegotiation nothing can be made any more.

const assert = require('assert');
const {
  createCipheriv, createDecipheriv, createHmac,
} = require('crypto');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
const { cert, key, socketPair, tlsOver, track } = require('./tls-splice');

const kChangeCipherSpec = 20;
const kAlert = 21;
const kHandshake = 22;
const kApplicationData = 23;
const kKeyUpdate = 24;

const kHeader = 5;
const kTag = 16;
const kExplicitNonce = 8;

const kWarning = 1;
const kFatal = 2;
const alerts = {
  close_notify: 0,
  unexpected_message: 10,
  bad_record_mac: 20,
  handshake_failure: 40,
  illegal_parameter: 47,
  internal_error: 80,
  user_canceled: 90,
};

function header(type, length) {
  return Buffer.from([type, 3, 3, length >> 8, length & 0xff]);
}

// A record of TLS as it is on the wire
function record(type, content) {
  return Buffer.concat([header(type, content.length), content]);
}

function hmac(hash, key, ...parts) {
  const mac = createHmac(hash, key);
  for (const part of parts)
    mac.update(part);
  return mac.digest();
}

// RFC 5246, 5: the PRF of TLS 1.2
function prf(hash, secret, label, seed, length) {
  const parts = [];
  let a = Buffer.concat([Buffer.from(label), seed]);
  const labelled = a;
  for (let bytes = 0; bytes < length; bytes += parts.at(-1).length) {
    a = hmac(hash, secret, a);
    parts.push(hmac(hash, secret, a, labelled));
  }
  return Buffer.concat(parts).subarray(0, length);
}

// RFC 8446, 7.1: HKDF-Expand-Label of TLS 1.3, without a context and of no
// more than one block
function expandLabel(hash, secret, label, length) {
  const name = `tls13 ${label}`;
  const info = Buffer.concat([
    Buffer.from([0, length, name.length]), Buffer.from(name), Buffer.from([0, 1]),
  ]);
  return hmac(hash, secret, info).subarray(0, length);
}

// The keys of one direction, and how many records they have been used for.
class Epoch {
  #sequence = 0n;

  constructor({ cipher, hash, keyLength, ...keys }) {
    this.cipher = cipher;
    this.hash = hash;
    this.keyLength = keyLength;
    this.#use(keys);
  }

  // Of TLS 1.3 `secret`, the traffic secret; of TLS 1.2 `key` and `iv`
  #use({ secret, key, iv }) {
    this.secret = secret;
    this.key = key ?? expandLabel(this.hash, secret, 'key', this.keyLength);
    this.iv = iv ?? expandLabel(this.hash, secret, 'iv', 12);
  }

  copy() {
    return new Epoch(this);
  }

  // After a KeyUpdate
  update() {
    const { length } = this.secret;
    this.#use({ secret: expandLabel(this.hash, this.secret, 'traffic upd', length) });
    this.#sequence = 0n;
  }

  // Of the next record: its number as bytes
  #next() {
    const number = Buffer.alloc(8);
    number.writeBigUInt64BE(this.#sequence++);
    return number;
  }

  // TLS 1.3: the nonce is not sent, and the type is a part of what is encrypted.
  #nonce(number) {
    const nonce = Buffer.from(this.iv);
    for (let i = 0; i < 8; i++)
      nonce[4 + i] ^= number[i];
    return nonce;
  }

  #encrypt(nonce, aad, content) {
    const cipher = createCipheriv(this.cipher, this.key, nonce);
    cipher.setAAD(aad);
    return Buffer.concat([cipher.update(content), cipher.final(), cipher.getAuthTag()]);
  }

  #decrypt(nonce, aad, content) {
    const decipher = createDecipheriv(this.cipher, this.key, nonce, { authTagLength: kTag });
    decipher.setAAD(aad);
    decipher.setAuthTag(content.subarray(content.length - kTag));
    return Buffer.concat([
      decipher.update(content.subarray(0, content.length - kTag)), decipher.final(),
    ]);
  }

  seal(type, content) {
    const number = this.#next();
    if (this.secret) {
      const inner = Buffer.concat([content, Buffer.from([type])]);
      const aad = header(kApplicationData, inner.length + kTag);
      return Buffer.concat([aad, this.#encrypt(this.#nonce(number), aad, inner)]);
    }
    const nonce = Buffer.concat([this.iv, number]);
    const aad = Buffer.concat([number, header(type, content.length)]);
    return record(type, Buffer.concat([number, this.#encrypt(nonce, aad, content)]));
  }

  // The type and the content of what the same keys have sealed, or an error.
  open(sealed) {
    const number = this.#next();
    const body = sealed.subarray(kHeader);
    if (this.secret) {
      const inner = this.#decrypt(this.#nonce(number), sealed.subarray(0, kHeader), body);
      let end = inner.length - 1;
      while (inner[end] === 0)  // Padding
        end--;
      return { type: inner[end], content: inner.subarray(0, end) };
    }
    const { 0: type } = sealed;
    const nonce = Buffer.concat([this.iv, body.subarray(0, kExplicitNonce)]);
    const length = body.length - kExplicitNonce - kTag;
    const aad = Buffer.concat([number, header(type, length)]);
    return { type, content: this.#decrypt(nonce, aad, body.subarray(kExplicitNonce)) };
  }
}

class RecordTap extends Duplex {
  #socket = null;
  // What the keys are made of
  #secrets = new Map();
  #serverHello = Buffer.alloc(0);
  #clientRandom = null;
  // A record that the TLSSocket has written a part of
  #partial = Buffer.alloc(0);
  // The keys with which the TLSSocket encrypts, and those with which the records
  // are sent. null before the handshake is over.
  #written = null;
  #sent = null;
  #renegotiated = false;

  /**
   * @param {net.Socket} raw A connected socket.
   * @param {object} [options]
   * @param {boolean} [options.isServer] Whether the TLSSocket over it is one.
   */
  constructor(raw, { isServer = false } = {}) {
    super({ allowHalfOpen: true, autoDestroy: true });
    this.raw = raw;
    this.isServer = isServer;
    raw.on('data', (chunk) => {
      if (!isServer)
        this.#hear(chunk);
      if (!this.push(chunk))
        raw.pause();
    });
    raw.on('end', () => this.push(null));
    raw.on('error', (err) => this.destroy(err));
    raw.on('close', () => this.destroy());
  }

  /**
   * Learns the keys from the TLSSocket over it, before its handshake.
   * @param {tls.TLSSocket} socket
   * @returns {this}
   */
  follow(socket) {
    this.#socket = socket;
    socket.on('keylog', (line) => {
      const { 0: label, 1: random, 2: secret } = `${line}`.trim().split(' ');
      this.#clientRandom = Buffer.from(random, 'hex');
      this.#secrets.set(label, Buffer.from(secret, 'hex'));
    });
    return this;
  }

  /**
   * Whether a record can be made: the TLSSocket has encrypted one.
   * @type {boolean}
   */
  get isReady() {
    return this.#sent !== null;
  }

  /**
   * A record of any type, encrypted. It has to be sent before the next is made.
   * @returns {Buffer}
   */
  seal(type, content) {
    assert(!this.#renegotiated, 'The keys are not known since a renegotiation');
    assert(this.isReady, 'The TLSSocket has not written anything yet');
    return this.#sent.seal(type, Buffer.from(content));
  }

  data(content) {
    return this.seal(kApplicationData, content);
  }

  // Of these OpenSSL takes 32 in a row.
  empty() {
    return this.data('');
  }

  alert(level, description) {
    return this.seal(kAlert, [level, description]);
  }

  // TLS 1.3
  keyUpdate({ request = false } = {}) {
    const sealed = this.seal(kHandshake, [kKeyUpdate, 0, 0, 1, request ? 1 : 0]);
    this.#sent.update();
    return sealed;
  }

  // It looks like a record, but cannot be decrypted.
  garbage(length = 64) {
    return record(kApplicationData, Buffer.alloc(length, 0x5a));
  }

  /**
   * Sends records after all that the TLSSocket has written so far, together.
   * @param {...Buffer} records
   * @returns {boolean} As write() does.
   */
  send(...records) {
    return this.raw.write(Buffer.concat(records));
  }

  _read() {
    this.raw.resume();
  }

  _write(chunk, encoding, callback) {
    const records = [];
    let rest = Buffer.concat([this.#partial, chunk]);
    while (rest.length >= kHeader) {
      const length = kHeader + rest.readUInt16BE(3);
      if (rest.length < length)
        break;
      records.push(this.#pass(rest.subarray(0, length)));
      rest = rest.subarray(length);
    }
    this.#partial = rest;
    this.raw.write(Buffer.concat(records), callback);
  }

  _final(callback) {
    this.raw.end(callback);
  }

  _destroy(err, callback) {
    this.raw.destroy();
    callback(err);
  }

  // A record that the TLSSocket has written, as it is to be sent.
  #pass(written) {
    if (this.isServer)
      this.#hear(written);
    if (this.#written === null && !this.#renegotiated) {
      this.#begin(written);
      return written;
    }
    if (this.#renegotiated)
      return written;
    const { type, content } = this.#written.open(written);
    const sealed = this.#sent.seal(type, content);
    if (type === kChangeCipherSpec) {
      this.#renegotiated = true;
      this.#sent = null;
    } else if (this.#written.secret && type === kHandshake && content[0] === kKeyUpdate) {
      this.#written.update();
      this.#sent.update();
    }
    return sealed;
  }

  // Is this the first record with the keys of application data? Those of the
  // handshake are not looked at.
  #begin(written) {
    const epoch = this.#isTLS13 ? this.#epoch13() : this.#epoch12();
    if (epoch === null)
      return;
    try {
      epoch.open(written);
    } catch {
      return;
    }
    this.#written = epoch;
    this.#sent = epoch.copy();
    this.#sent.seal(kApplicationData, Buffer.alloc(0));
  }

  get #isTLS13() {
    return !this.#secrets.has('CLIENT_RANDOM');
  }

  get #algorithm() {
    const { standardName } = this.#socket.getCipher();
    const { 1: bits, 2: hash } = /AES_(128|256)_GCM_SHA(256|384)$/.exec(standardName) ?? [];
    assert(bits, `${standardName} is not supported`);
    return { cipher: `aes-${bits}-gcm`, hash: `sha${hash}`, keyLength: bits / 8 };
  }

  #epoch13() {
    const secret = this.#secrets.get(
      `${this.isServer ? 'SERVER' : 'CLIENT'}_TRAFFIC_SECRET_0`);
    return secret ? new Epoch({ ...this.#algorithm, secret }) : null;
  }

  #epoch12() {
    const random = this.#serverRandom;
    const master = this.#secrets.get('CLIENT_RANDOM');
    const { cipher, hash, keyLength } = this.#algorithm;
    const seed = Buffer.concat([random, this.#clientRandom]);
    const block = prf(hash, master, 'key expansion', seed, 2 * keyLength + 2 * 4);
    const index = this.isServer ? 1 : 0;
    return new Epoch({
      cipher,
      hash,
      keyLength,
      key: block.subarray(index * keyLength, (index + 1) * keyLength),
      iv: block.subarray(2 * keyLength + index * 4, 2 * keyLength + (index + 1) * 4),
    });
  }

  // What the server sends begins with a ServerHello.
  #hear(chunk) {
    if (this.#serverHello.length < kHeader + 4 + 2 + 32)
      this.#serverHello = Buffer.concat([this.#serverHello, chunk]);
  }

  get #serverRandom() {
    const begin = kHeader + 4 + 2;
    return this.#serverHello.subarray(begin, begin + 32);
  }
}

// A TLSSocket, and a peer of it that can send any record, both secure. `isServer`
// is what the peer is, and the TLSSocket is one over `wrap(under)`. `kind` is that of
// socketPair(); the other options are those of tlsPair().
async function recordPair({
  isServer = false, kind = 'tcp', wrap = (stream) => stream, ...options
} = {}) {
  const { 0: raw, 1: under } = await socketPair(kind);
  const tap = new RecordTap(raw, { isServer });
  let peer, socket;
  if (isServer) {
    ({ client: socket, server: peer } = tlsOver(wrap(under), tap, options));
    tap.follow(peer);
    await Promise.all([once(socket, 'secureConnect'), once(peer, 'secure')]);
  } else {
    // Only one of a tls.Server is destroyed by an error.
    const server = tls.createServer({ key, cert, ...options });
    const accepted = once(server, 'secureConnection');
    server.emit('connection', wrap(under));
    peer = tls.connect({ socket: tap, rejectUnauthorized: false, ...options });
    track(peer);
    tap.follow(peer);
    ({ 0: { 0: socket } } = await Promise.all([accepted, once(peer, 'secureConnect')]));
    track(socket);
  }
  return { peer, socket, tap, raw, under };
}

module.exports = { RecordTap, alerts, kFatal, kWarning, recordPair };
