'use strict';

// DNS over TLS (RFC 7858), for a DNS server that does not speak it: each TLS
// connection is joined to a UDP socket, in native code. A query or an answer is a
// datagram there, and has a length of two bytes before it here ('u16be').
//
//   node --disable-warning=DEP0112 dns-over-tls.js --dns [HOST:]PORT --key key.pem --cert cert.pem
//
// A client gets answers until it ends its side of the connection: half-closing it right
// after a query means not to wait for the answer.
//
// An answer that does not fit into a datagram comes truncated. If there are such
// answers, put tls-terminator.js in front of the TCP port of the DNS server instead.

const dgram = require('node:dgram');
const fs = require('node:fs');
const net = require('node:net');
const tls = require('node:tls');
const { once } = require('node:events');
const { parseArgs } = require('node:util');

const { values: args } = parseArgs({ options: {
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string', default: '853' },
  dns: { type: 'string', default: '53' },
  key: { type: 'string', default: 'key.pem' },
  cert: { type: 'string', default: 'cert.pem' },
} });
// A port alone is one of this machine's.
const [port, host = '127.0.0.1'] = args.dns.split(/:(?=\d+$)/).reverse();

// A splice of the client to a UDP socket of its own, which is connected to the DNS server:
// answers of anybody else are not for this socket.
async function spliceToDNS(client) {
  const socket = dgram.createSocket(net.isIPv6(host) ? 'udp6' : 'udp4');
  try {
    socket.connect(Number(port), host);
    await once(socket, 'connect');
    // There is no public name for the descriptor, and Node warns of this one.
    return client.spliceTo({ fd: /** @type {any} */ (socket)._handle.fd });
  } finally {
    // The splice has a duplicate of it, and nobody else may read from the socket.
    socket.close();
  }
}

async function serve(client) {
  const name = `${client.remoteAddress}:${client.remotePort}`;
  // The client may fail while the other socket is connected, and a splice with a handle leaves it to the program. An
  // 'error' that nobody listens to would end the process. What is awaited below fails, too.
  client.on('error', () => {});
  try {
    const splice = await spliceToDNS(client);
    // A client keeps the connection for its next queries, but not for ever.
    client.setTimeout(30_000, () => splice.stop());
    const { packetsIn, packetsOut, dropsIn } = await splice.start().finished;
    console.log(`${name} sent ${packetsIn} queries and got ${packetsOut} answers, ${dropsIn} queries were refused`);
  } catch (err) {
    console.error(`${name} failed: ${err.message}`);
  } finally {
    client.destroy();
  }
}

const server = tls.createServer({
  key: fs.readFileSync(args.key),
  cert: fs.readFileSync(args.cert),
  ALPNProtocols: ['dot'],
}, serve);

server.listen(Number(args.port), args.host, () => {
  const { address, port } = /** @type {net.AddressInfo} */ (server.address());
  console.log(`listening on ${address}:${port}`);
});
