'use strict';

// What the peers of these tests are joined to the other side by: a splice, or pipeline(), as without splices.
//
//   node forwarder.js splice|pipeline FROM TO OPTIONS
//
// FROM is `tls` or `tcp`, which listen on a port, or `fifo:NAME`. TO is `tls:PORT`, `tcp:PORT`, or `fifo:NAME`. Of the
// FIFOs of the first connection, NAME.0.up is for what the TLS peer sends, and NAME.0.down for what it gets. OPTIONS,
// in JSON, are for the TLS sockets. It prints a line of JSON at the end of each connection.

const fs = require('fs');
const net = require('net');
const tls = require('tls');
const { once } = require('events');
const { Duplex } = require('stream');
const { pipeline } = require('stream/promises');
const { promisify } = require('util');

const { 2: move, 3: from, 4: to, 5: options } = process.argv;
const tlsOptions = {
  key: fs.readFileSync('localhost.key'),
  cert: fs.readFileSync('localhost.pem'),
  ca: fs.readFileSync('ca.pem'),
  allowHalfOpen: true,
  ...JSON.parse(options),
};

let count = 0;

// The writable and the readable end. They wait for those of the other side.
async function fifos(name) {
  const open = promisify(fs.open);
  const next = `${name}.${count++}`;
  const [up, down] = await Promise.all([open(`${next}.up`, 'w'), open(`${next}.down`, 'r')]);
  return { up, down };
}

async function splice(socket, endpoint) {
  if (endpoint instanceof Duplex)
    return socket.pipeToNative(endpoint);
  const splices = [
    socket.spliceTo({ fd: endpoint.up, direction: 'in', autoClose: true }),
    socket.spliceTo({ fd: endpoint.down, direction: 'out', autoClose: true }),
  ];
  await Promise.all(splices.map((splice) => splice.start().finished));
}

async function pipe(socket, endpoint) {
  const sink = endpoint.up ? fs.createWriteStream(null, { fd: endpoint.up }) : endpoint;
  const source = endpoint.down ? fs.createReadStream(null, { fd: endpoint.down }) : endpoint;
  await Promise.all([pipeline(socket, sink), pipeline(source, socket)]);
}

const join = { splice, pipeline: pipe }[move];

// `error` is what went wrong with a TLSSocket, if anything did, or else with the other side.
async function report(socket, endpoint) {
  let error;
  const protocol = socket.getProtocol();
  for (const one of [socket, endpoint]) {
    if (one instanceof Duplex)
      one.on('error', (err) => { error ??= err.code; });
  }
  try {
    await join(socket, endpoint);
  } catch (err) {
    error ??= err.code ?? err.message;
  }
  socket.destroy();
  endpoint.destroy?.();
  console.log(JSON.stringify({ protocol, error }));
}

const where = to.slice(to.indexOf(':') + 1);

async function connectTLS({ alpnProtocol } = {}) {
  const socket = tls.connect({
    port: where, host: '127.0.0.1', servername: 'localhost', ...tlsOptions,
    ...(alpnProtocol && { ALPNProtocols: [alpnProtocol] }),
  });
  await once(socket, 'secureConnect');
  return socket;
}

async function connectTCP() {
  const socket = net.connect({ port: where, host: '127.0.0.1', allowHalfOpen: true });
  await once(socket, 'connect');
  return socket;
}

async function serveTLS(client) {
  client.on('error', () => {});
  if (to.startsWith('tls:'))
    return report(client, await connectTLS(client));
  return report(client, to.startsWith('tcp:') ? await connectTCP() : await fifos(where));
}

function listen(server) {
  server.listen(0, '127.0.0.1', () => console.log(`listening on 127.0.0.1:${server.address().port}`));
}

if (from === 'tls') {
  listen(tls.createServer(tlsOptions, serveTLS).on('tlsClientError', () => {}));
} else if (from === 'tcp') {
  listen(net.createServer({ allowHalfOpen: true }, async (client) => report(await connectTLS(), client)));
} else {
  Promise.all([connectTLS(), fifos(from.slice('fifo:'.length))]).then(([server, ends]) => report(server, ends));
}
