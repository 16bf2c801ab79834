'use strict';

// A peer of TLS 1.3 that asks for KeyUpdates without end, and reads none of the answers, which
// OpenSSL would collect without bound: a splice that has both directions ends with an error.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no Unix sockets on Windows');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { closing, run, settled, socketPair } = require('../common/tls-splice');
const { recordPair } = require('../common/tls-records');

// So many requests are sent, and answered, at once.
const kBurst = 1000;

// A stream that takes the writes of a handshake, and completes none after stall().
class Stalling extends Duplex {
  #socket;
  #isStalled = false;

  constructor(socket) {
    super({ allowHalfOpen: true });
    this.#socket = socket;
    socket.on('data', (chunk) => this.push(chunk) || socket.pause());
    socket.on('end', () => this.push(null));
  }

  stall() {
    this.#isStalled = true;
  }

  _read() {
    this.#socket.resume();
  }

  _write(chunk, encoding, callback) {
    if (!this.#isStalled)
      this.#socket.write(chunk, callback);
  }

  _destroy(err, callback) {
    this.#socket.destroy();
    callback(err);
  }
}

async function pair(wrap) {
  const { peer, socket, tap, raw } = await recordPair({
    kind: 'unix', minVersion: 'TLSv1.3', allowHalfOpen: true, wrap,
  });
  for (const each of [peer, socket, raw])
    each.on('error', () => {});
  // The tap can make records once the peer has written something.
  peer.write('>');
  await once(socket, 'data');
  socket.pause();
  const { 0: endpoint, 1: other } = await socketPair();
  const received = { text: '' };
  other.on('data', (chunk) => received.text += chunk);
  return {
    peer, socket, raw, endpoint, other, received,
    // Sends at most so many bursts, a byte of data before each of them, until the socket is
    // closed. Returns how many there were.
    async flood(most) {
      let bursts = 0;
      while (bursts < most && !socket.destroyed) {
        bursts++;
        const requests = [tap.data('.')];
        for (let i = 0; i < kBurst; i++)
          requests.push(tap.keyUpdate({ request: true }));
        tap.send(...requests);
        await settled(() => raw.writableLength);
      }
      return bursts;
    },
  };
}

function start(socket, stream, directions) {
  return directions.map((direction) => socket.spliceTo({ stream, direction }).start());
}

function end(...sockets) {
  for (const socket of sockets)
    socket.destroy();
}

// The stream below holds the answers at once.
for (const directions of [['duplex'], ['out', 'in']]) {
  run(async () => {
    let stalling;
    const wrap = (socket) => stalling = new Stalling(socket);
    const { socket, raw, endpoint, other, received, flood } = await pair(wrap);
    stalling.stall();
    const closed = start(socket, endpoint, directions).map(async (splice) => {
      splice.on('error', common.mustCall((err) => {
        assert.strictEqual(err.code, 'ERR_SSL_TOO_MANY_KEY_UPDATES');
        assert.strictEqual(err.reason, 'too many key updates');
      }));
      assert.strictEqual((await closing(splice)).reason, 'error');
    });
    assert.ok(await flood(8) < 8);
    await Promise.all(closed);
    // What came before the end is delivered.
    assert.match(received.text, /^\.+$/);
    end(raw, endpoint, other);
  });
}

// A peer that reads the answers may ask for as many as it likes.
run(async () => {
  const { peer, socket, endpoint, other, received, flood } = await pair((socket) => socket);
  peer.resume();
  start(socket, endpoint, ['duplex']);
  assert.strictEqual(await flood(4), 4);
  await settled(() => received.text.length);
  assert.strictEqual(received.text, '.'.repeat(4));
  end(peer, socket, endpoint, other);
});

// If JavaScript writes, what waits is as much as it is without a splice.
run(async () => {
  let stalling;
  const wrap = (socket) => stalling = new Stalling(socket);
  const { raw, socket, endpoint, other, received, flood } = await pair(wrap);
  stalling.stall();
  start(socket, endpoint, ['in']);
  assert.strictEqual(await flood(4), 4);
  await settled(() => received.text.length);
  assert.strictEqual(received.text, '.'.repeat(4));
  end(raw, socket, endpoint, other);
});
