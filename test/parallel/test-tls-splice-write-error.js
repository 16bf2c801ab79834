'use strict';

// A write of the splice fails, while JavaScript has an empty write under way, which
// TLSWrap takes for what has failed: JavaScript destroys the socket from inside of
// that. The splice and the socket end with an error, and the process goes on.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { Duplex } = require('stream');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, fifo, payload, pipeSocket, run, socketPair, tlsOver, turns,
} = require('../common/tls-splice');

// Below the TLSSocket: TCP, or a Duplex over it.
const streams = {
  'TCP': (socket) => socket,
  'a Duplex': (socket) => Duplex.from({ readable: socket, writable: socket }),
};

// What never ends to send to the TLS peer.
const sources = {
  'fd': () => {
    const { reader, writer } = fifo();
    return { fd: reader, socket: pipeSocket(writer, { readable: false }) };
  },
  'stream': async () => {
    const { 0: stream, 1: socket } = await socketPair();
    return { stream, socket };
  },
};

// What JavaScript does as soon as the peer is gone.
const actions = {
  'empty writes': (server) => {
    (function write() {
      if (server.destroyed)
        return;
      server.write('', () => {});
      setImmediate(write);
    })();
  },
  'an empty write at once': (server) => server.write('', () => {}),
  'renegotiate()': (server) => server.renegotiate({}, () => {}),
  'end()': (server) => server.end(),
};

function feed(socket) {
  const chunk = Buffer.concat([...payload(1 << 20)]);
  (function write() {
    if (!socket.destroyed)
      socket.write(chunk, (err) => err || write());
  })();
}

for (const { 0: under, 1: makeStream } of Object.entries(streams)) {
  for (const { 0: kind, 1: makeSource } of Object.entries(sources)) {
    for (const directions of [['out'], ['duplex'], ['in', 'out'], ['out', 'in']]) {
      for (const { 0: what, 1: act } of Object.entries(actions)) {
        // The FIFO can only be read.
        if (kind === 'fd' && !directions.every((direction) => direction === 'out'))
          continue;
        run(async () => {
          const { 0: raw, 1: below } = await socketPair();
          const { socket, ...endpoint } = await makeSource();
          const { client, server } = tlsOver(raw, makeStream(below), {
            maxVersion: 'TLSv1.2', allowHalfOpen: true,
          });
          for (const stream of [raw, below, client, server, socket, endpoint.stream])
            stream?.on('error', () => {});
          await once(client, 'secureConnect');
          const splices = directions.map((direction) =>
            server.spliceTo({ ...endpoint, direction }).start());
          const finished = splices.map((splice) => splice.finished.catch(() => {}));
          feed(socket);
          await once(client, 'data');
          client.pause();
          await turns();
          const closed = closing(server);
          raw.resetAndDestroy();
          act(server);
          if (what === 'end()')
            setImmediate(() => server.destroySoon());
          await Promise.all([...finished, closed]);
          for (const { state } of splices)
            assert.strictEqual(state, 'closed', `${under}, ${kind}, ${directions}, ${what}`);
          socket.destroy();
        });
      }
    }
  }
}
