'use strict';

// What a socket that is not spliced makes of what an Injector does to it: what
// of that a splice is to make, too. This is a process of its own, which can be one
// of a Node without splices. It is asked, and answers, by messages.

const { once } = require('events');
const fs = require('fs');
const { Injector } = require('./injector');
const { Sockets } = require('./sockets');

const kSize = 20_000;
const { 2: directory } = process.argv;
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

const ready = (async () => {
  const sockets = new Sockets(directory, {
    key: fs.readFileSync(`${directory}/key.pem`),
    cert: fs.readFileSync(`${directory}/cert.pem`),
  });
  await sockets.listen();
  return sockets;
})();

// The code of its error
function errorOf(options) {
  const name = JSON.stringify(options);
  if (!codes.has(name))
    codes.set(name, ready.then((sockets) => run(sockets, options)));
  return codes.get(name);
}

process.on('message', async ({ id, options }) => {
  process.send({ id, code: await errorOf(options) });
});
process.on('disconnect', () => process.exit());
