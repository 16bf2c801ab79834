'use strict';

// What a socket that is not spliced makes of what an Injector does to it: what
// of that a splice is to make, too.

const { once } = require('events');
const { Injector } = require('./injector');

const kSize = 20_000;
const codes = new Map();

async function run(sockets, { version, role, kind }) {
  const { 0: raw, 1: below } = await sockets.pair('unix');
  const injector = new Injector(raw, { isServer: role === 'client', version });
  let socket;
  let peer;
  if (role === 'client') {
    socket = sockets.tlsClient(below, version);
    peer = sockets.tlsServer(injector.stream, version);
  } else {
    socket = role === 'listener' ? sockets.tlsListener(below, version) : sockets.tlsServer(below, version);
    peer = sockets.tlsClient(injector.stream, version);
  }
  injector.listenTo(peer);
  const all = [raw, below, injector.stream, peer];
  const secure = once(peer, 'secure');
  for (const stream of all)
    stream.on('error', () => {});
  socket = await socket;
  all.push(socket);
  try {
    await secure;
    peer.write(Buffer.alloc(kSize));
    let bytes = 0;
    socket.on('data', (chunk) => bytes += chunk.length);
    while (bytes < kSize)
      await once(socket, 'data');
    // All that Node tells of is an event. It tells of an error in this one, too, if
    // nobody has looked at the certificate.
    const failing = once(socket, '_tlsError');
    socket.on('error', () => {});
    injector.inject(kind);
    return (await failing)[0].code;
  } finally {
    for (const stream of all)
      stream.destroy();
  }
}

// The code of its error.
function errorOfTwin(sockets, options) {
  const name = JSON.stringify(options);
  if (!codes.has(name))
    codes.set(name, run(sockets, options));
  return codes.get(name);
}

module.exports = { errorOfTwin };
