'use strict';

// What no peer of Node's does: alerts of its choice, records that are broken or
// cut off, ends without a word, and KeyUpdates. An Injector is the stream below the
// peer's TLS. It knows where records end, and as the peer tells it the secrets of the
// session, it can go on in its place, or encrypt anew what the peer has encrypted.

const { createCipheriv, createDecipheriv, createHmac, randomBytes } = require('crypto');
const { Duplex } = require('stream');

const kHeader = 5;
const kTag = 16;
const kChangeCipherSpec = 20;
const kAlert = 21;
const kHandshake = 22;
const kApplicationData = 23;

const kWarning = 1;
const kFatal = 2;
const kKeyUpdate = 24;
const kUpdateLength = 5;
const kCloseNotify = 0;
const kInternalError = 80;
const kUserCanceled = 90;

function header(type, length) {
  return Buffer.from([type, 3, 3, length >> 8, length & 255]);
}

function hmac(hash, key, ...parts) {
  const result = createHmac(hash, key);
  for (const part of parts)
    result.update(part);
  return result.digest();
}

// HKDF-Expand-Label() of RFC 8446, of no more than one block.
function expandLabel(hash, secret, label, length) {
  const name = Buffer.from(`tls13 ${label}`);
  const info = Buffer.concat([Buffer.from([length >> 8, length & 255, name.length]), name, Buffer.from([0, 1])]);
  return hmac(hash, secret, info).subarray(0, length);
}

// PRF() of RFC 5246
function prf(hash, secret, label, seed, length) {
  const full = Buffer.concat([Buffer.from(label), seed]);
  const blocks = [];
  for (let a = full, have = 0; have < length; have += blocks.at(-1).length) {
    a = hmac(hash, secret, a);
    blocks.push(hmac(hash, secret, a, full));
  }
  return Buffer.concat(blocks).subarray(0, length);
}

// 'TLS_AES_256_GCM_SHA384', 'ECDHE-ECDSA-AES128-GCM-SHA256'
function parametersOf(cipher) {
  const match = /AES_?(128|256)[-_]GCM[-_]SHA(256|384)/.exec(cipher);
  if (match === null)
    throw new Error(`cannot encrypt with ${cipher}`);
  return { algorithm: `aes-${match[1]}-gcm`, keyLength: match[1] / 8, hash: `sha${match[2]}` };
}

// Of all records that have been sent with the key, and of the next one.
class Protection {
  constructor(algorithm, key, iv) {
    this.algorithm = algorithm;
    this.key = key;
    this.iv = iv;
    this.sequence = 0;
  }

  #number() {
    const number = Buffer.alloc(8);
    number.writeBigUInt64BE(BigInt(this.sequence));
    return number;
  }

  #encrypt(nonce, aad, clear) {
    const cipher = createCipheriv(this.algorithm, this.key, nonce);
    cipher.setAAD(aad);
    const sealed = Buffer.concat([cipher.update(clear), cipher.final(), cipher.getAuthTag()]);
    this.sequence++;
    return sealed;
  }

  #nonce13() {
    const nonce = Buffer.from(this.iv);
    this.#number().forEach((byte, i) => nonce[4 + i] ^= byte);
    return nonce;
  }

  seal13(type, content) {
    return this.sealInner13(Buffer.concat([content, Buffer.from([type])]));
  }

  // `inner`: the content, and behind it the type.
  sealInner13(inner) {
    const head = header(kApplicationData, inner.length + kTag);
    return Buffer.concat([head, this.#encrypt(this.#nonce13(), head, inner)]);
  }

  // The content with the type behind it, or null if it is not the next one.
  open13(record) {
    const decipher = createDecipheriv(this.algorithm, this.key, this.#nonce13());
    decipher.setAAD(record.subarray(0, kHeader));
    decipher.setAuthTag(record.subarray(-kTag));
    const inner = decipher.update(record.subarray(kHeader, -kTag));
    try {
      decipher.final();
      return inner;
    } catch {
      return null;
    }
  }

  seal12(type, content) {
    const number = this.#number();
    // The explicit part need only be one that the peer does not use.
    const explicit = Buffer.concat([Buffer.from([0xff]), number.subarray(1)]);
    const sealed = this.#encrypt(Buffer.concat([this.iv, explicit]),
                                 Buffer.concat([number, header(type, content.length)]), content);
    return Buffer.concat([header(type, explicit.length + sealed.length), explicit, sealed]);
  }
}

// The keys of TLS 1.3 that come of a secret, and of those that follow it.
class Secret {
  #hash;
  #keyLength;
  #algorithm;
  #secret;

  constructor({ algorithm, keyLength, hash }, secret) {
    this.#hash = hash;
    this.#keyLength = keyLength;
    this.#algorithm = algorithm;
    this.#secret = secret;
  }

  protection() {
    const expand = (label, length) => expandLabel(this.#hash, this.#secret, label, length);
    return new Protection(this.#algorithm, expand('key', this.#keyLength), expand('iv', 12));
  }

  // Returns the secret that follows a KeyUpdate.
  next() {
    const parameters = { algorithm: this.#algorithm, keyLength: this.#keyLength, hash: this.#hash };
    return new Secret(parameters, expandLabel(this.#hash, this.#secret, 'traffic upd', this.#secret.length));
  }
}

// Looks into the records that come from the other side, for its KeyUpdates.
class KeyUpdates {
  #secret;
  #protection;
  #part = Buffer.alloc(0);
  #counts = false;
  #onUpdate;

  constructor(secret, onUpdate) {
    this.#secret = secret;
    this.#protection = secret.protection();
    this.#onUpdate = onUpdate;
  }

  onRead(chunk) {
    this.#part = Buffer.concat([this.#part, chunk]);
    let at = 0;
    while (this.#part.length - at >= kHeader) {
      const length = kHeader + this.#part.readUInt16BE(at + 3);
      if (this.#part.length - at < length)
        break;
      if (this.#part[at] === kApplicationData)
        this.#onRecord(this.#part.subarray(at, at + length));
      at += length;
    }
    this.#part = this.#part.subarray(at);
  }

  // Records of the handshake, which have other keys, precede the records that count.
  #onRecord(record) {
    const mayBeUpdate = record.length === kHeader + kUpdateLength + 1 + kTag;
    const inner = this.#counts && !mayBeUpdate ? null : this.#protection.open13(record);
    this.#counts ||= inner !== null;
    if (mayBeUpdate && inner?.at(-1) === kHandshake && inner[0] === kKeyUpdate) {
      this.#secret = this.#secret.next();
      this.#protection = this.#secret.protection();
      this.#onUpdate();
    } else if (this.#counts) {
      this.#protection.sequence++;
    }
  }
}

class Injector {
  // For the peer's TLS.
  stream;
  // Of the ciphertext that the peer has made, and its stream has not refused.
  bytes = 0;
  // Whether it goes on in the peer's place.
  taken = false;
  #reader;
  #writer;
  #isServer;
  #version;
  #part = Buffer.alloc(0);
  #held = null;
  #read = Buffer.alloc(0);
  #keys = null;
  #sinceChange = -1;
  #changes = 0;
  #serverRandom = null;
  // The protection of the peer's records.
  #protection = null;
  // The protection of what goes out, which is another one after a KeyUpdate.
  #own = null;
  // The traffic secret (TLS 1.3 alone).
  #secret = null;
  // Whether no record is of the handshake any more, which has other keys (TLS 1.3 alone).
  #counts = false;
  // What has come of the other side before its secret was known, and then its KeyUpdates.
  #unread = [];
  #theirKeys = null;
  #theirs = null;
  #onKeyUpdate;

  // `onKeyUpdate` is called when the other side has updated its keys.
  constructor(below, { isServer, version, onKeyUpdate }) {
    this.#reader = this.#writer = below;
    this.#isServer = isServer;
    this.#version = version;
    this.#onKeyUpdate = onKeyUpdate;
    // What it sends on its own is small.
    below.setNoDelay?.(true);
    const stream = this.stream = new Duplex({
      autoDestroy: false,
      read: () => below.resume(),
      // All of it is taken at once: what the peer has written is here.
      write: (chunk, encoding, callback) => {
        this.#onWrite(chunk);
        callback();
      },
      final: (callback) => {
        this.#end(callback);
      },
      destroy: (err, callback) => {
        below.destroy();
        callback(err);
      },
    });
    below.on('data', (chunk) => {
      this.#onRead(chunk);
      if (!stream.push(chunk))
        below.pause();
    });
    below.on('end', () => stream.push(null));
    below.on('error', (err) => stream.destroy(err));
    below.on('close', () => {
      if (!below.readableEnded)
        stream.destroy();
    });
  }

  // The peer, a TLSSocket over `stream`.
  listenTo(peer) {
    peer.on('keylog', (line) => {
      const { 0: label, 1: random, 2: secret } = `${line}`.trim().split(' ');
      const mine = this.#isServer ? 'SERVER_TRAFFIC_SECRET_0' : 'CLIENT_TRAFFIC_SECRET_0';
      const theirs = this.#isServer ? 'CLIENT_TRAFFIC_SECRET_0' : 'SERVER_TRAFFIC_SECRET_0';
      const cipher = () => peer.getCipher()?.name;
      if (label === mine || label === 'CLIENT_RANDOM') {
        this.#keys ??= {
          clientRandom: Buffer.from(random, 'hex'),
          secret: Buffer.from(secret, 'hex'),
          cipher,
        };
      } else if (label === theirs) {
        this.#theirKeys = { secret: Buffer.from(secret, 'hex'), cipher };
      }
    });
  }

  // Records that are whole go on.
  #onWrite(chunk) {
    this.bytes += chunk.length;
    if (this.taken)
      return;
    this.#part = this.#part.length > 0 ? Buffer.concat([this.#part, chunk]) : chunk;
    let end = 0;
    const records = [];
    while (this.#part.length - end >= kHeader) {
      const length = kHeader + this.#part.readUInt16BE(end + 3);
      if (this.#part.length - end < length)
        break;
      records.push(this.#onRecord(this.#part.subarray(end, end + length)));
      end += length;
    }
    if (end > 0)
      this.#send(this.#own === this.#protection ? this.#part.subarray(0, end) : Buffer.concat(records));
    this.#part = this.#part.subarray(end);
  }

  // Returns what is to be sent for it.
  #onRecord(record) {
    const { 0: type } = record;
    if (this.#isServer)
      this.#lookForHello(record);
    if (this.#version === 'TLSv1.2') {
      if (type === kChangeCipherSpec) {
        this.#changes++;
        this.#sinceChange = 0;
      } else if (this.#sinceChange >= 0) {
        this.#sinceChange++;
      }
    } else if (type === kApplicationData && this.#keys) {
      const protection = this.#protect();
      const isUpdated = this.#own !== protection;
      const inner = this.#counts && !isUpdated ? null : protection.open13(record);
      this.#counts ||= inner !== null;
      if (this.#counts)
        protection.sequence++;
      if (isUpdated)
        return this.#own.sealInner13(inner);
    }
    return record;
  }

  // Of the server's first flight.
  #lookForHello(record) {
    if (this.#serverRandom === null && record[0] === kHandshake && record[kHeader] === 2)
      this.#serverRandom = Buffer.from(record.subarray(kHeader + 6, kHeader + 38));
  }

  #onRead(chunk) {
    if (this.#onKeyUpdate && this.#version === 'TLSv1.3')
      this.#readKeyUpdates(chunk);
    if (this.#isServer || this.#serverRandom !== null || this.#version !== 'TLSv1.2')
      return;
    this.#read = Buffer.concat([this.#read, chunk]);
    if (this.#read.length > kHeader + 38)
      this.#lookForHello(this.#read);
  }

  // The peer hears of its secrets when it has read of them.
  #readKeyUpdates(chunk) {
    this.#unread.push(chunk);
    setImmediate(() => {
      const cipher = this.#theirKeys?.cipher();
      if (cipher === undefined || this.#unread.length === 0)
        return;
      this.#theirs ??= new KeyUpdates(new Secret(parametersOf(cipher), this.#theirKeys.secret), this.#onKeyUpdate);
      this.#theirs.onRead(Buffer.concat(this.#unread.splice(0)));
    });
  }

  #protect() {
    if (this.#protection !== null)
      return this.#protection;
    const { clientRandom, secret, cipher } = this.#keys;
    const parameters = parametersOf(cipher());
    const { algorithm, keyLength, hash } = parameters;
    if (this.#version === 'TLSv1.3') {
      this.#secret = new Secret(parameters, secret);
      return this.#protection = this.#own = this.#secret.protection();
    }
    const block = prf(hash, secret, 'key expansion', Buffer.concat([this.#serverRandom, clientRandom]),
                      2 * (keyLength + 4));
    const mine = this.#isServer ? 1 : 0;
    const key = block.subarray(mine * keyLength, (mine + 1) * keyLength);
    const ivs = block.subarray(2 * keyLength);
    this.#protection = this.#own = new Protection(algorithm, key, ivs.subarray(4 * mine, 4 * mine + 4));
    this.#protection.sequence = this.#sinceChange;
    return this.#protection;
  }

  // Whether it can send records of its own: not with keys that it does not know.
  get knowsKeys() {
    return this.#keys !== null && (this.#version === 'TLSv1.3' ? this.#counts : this.#changes === 1);
  }

  #send(bytes) {
    if (this.#held !== null)
      this.#held.push(bytes);
    else if (this.#writer.writable)
      this.#writer.write(bytes);
  }

  // From now on nothing goes out until release(), which sends it in one piece.
  hold() {
    this.#held ??= [];
  }

  release() {
    const held = this.#held;
    this.#held = null;
    if (held?.length > 0)
      this.#send(Buffer.concat(held));
  }

  #record(type, content) {
    this.#protect();
    this.#send(this.#version === 'TLSv1.3' ? this.#own.seal13(type, content) : this.#own.seal12(type, content));
  }

  // Whether it can do a KeyUpdate, when the handshake is done.
  get canUpdate() {
    return this.#version === 'TLSv1.3' && this.#keys !== null && !this.taken;
  }

  // Changes the keys of what goes out from now on. With `isRequest` the other side is to
  // change its own as well. The peer knows nothing of this, and its handshake is done.
  updateKeys(isRequest) {
    const { sequence } = this.#protect();
    // The peer counts on with the old keys.
    if (this.#own === this.#protection)
      this.#own = Object.assign(this.#secret.protection(), { sequence });
    this.#record(kHandshake, Buffer.from([kKeyUpdate, 0, 0, 1, isRequest ? 1 : 0]));
    this.bytes += kHeader + kUpdateLength + 1 + kTag;
    this.#counts = true;
    this.#secret = this.#secret.next();
    this.#own = this.#secret.protection();
  }

  // The callback is called when all of it has gone.
  #end(callback = () => {}) {
    const writer = this.#writer;
    this.release();
    if (writer.writable)
      writer.end();
    if (writer.writableFinished || writer.destroyed) {
      callback();
      return;
    }
    writer.once('finish', callback);
    writer.once('close', callback);
  }

  // What the peer writes from now on goes nowhere.
  inject(kind) {
    this.taken = true;
    this.hold();
    this.#inject(kind);
    this.release();
  }

  #inject(kind) {
    switch (kind) {
      case 'garbage':
        this.#send(Buffer.from('This is not a record of TLS.'));
        return;
      case 'bad record':
        this.#send(Buffer.concat([header(kApplicationData, 60), randomBytes(60)]));
        return;
      case 'bad record, FIN':
        this.#inject('bad record');
        this.#end();
        return;
      case 'fatal alert':
        this.#record(kAlert, Buffer.from([kFatal, kInternalError]));
        return;
      case 'empty records':
        for (let i = 0; i < 1000; i++)
          this.#record(kApplicationData, Buffer.alloc(0));
        return;
      case 'close_notify':
        this.#record(kAlert, Buffer.from([kWarning, kCloseNotify]));
        return;
      case 'user_canceled':
        this.#record(kAlert, Buffer.from([kWarning, kUserCanceled]));
        this.#record(kAlert, Buffer.from([kWarning, kCloseNotify]));
        return;
      case 'user_canceled, FIN':
        this.#inject('user_canceled');
        this.#end();
        return;
      case 'FIN':
        this.#end();
        return;
      case 'cut record, FIN':
        this.#send(Buffer.concat([header(kApplicationData, 200), randomBytes(60)]));
        this.#end();
        return;
      default:
        throw new Error(`no such injection: ${kind}`);
    }
  }
}

module.exports = { Injector };
