'use strict';

// Takes TLS off and puts it on again: the name that the client asks for (SNI) says
// which certificate it gets and which server it is joined to, in native code.
//
//   node sni-proxy.js --ca ca.pem NAME=HOST:PORT...
//
// For each NAME there are NAME.key and NAME.pem in the folder of --certs. The
// servers must have certificates for the same names, from the CA of --ca.

const fs = require('node:fs');
const path = require('node:path');
const tls = require('node:tls');
const { constants } = require('node:crypto');
const { parseArgs } = require('node:util');

const { values: args, positionals: routes } = parseArgs({ allowPositionals: true, options: {
  host: { type: 'string', default: '127.0.0.1' },
  port: { type: 'string', default: '8443' },
  certs: { type: 'string', default: '.' },
  ca: { type: 'string' },
} });
if (!args.ca || !routes.length || !routes.every((route) => /^[^/=]+=.+:\d+$/.test(route))) {
  console.error('usage: node sni-proxy.js [--port PORT] [--certs FOLDER] --ca FILE NAME=HOST:PORT...');
  process.exit(2);
}

const ca = fs.readFileSync(args.ca);
const names = new Map(routes.map((route) => {
  const [, name, host, port] = route.match(/^(.+)=(.+):(\d+)$/);
  const file = path.join(args.certs, name);
  const context = tls.createSecureContext({
    key: fs.readFileSync(`${file}.key`),
    cert: fs.readFileSync(`${file}.pem`),
  });
  return [name.toLowerCase(), { context, host, port: Number(port) }];
}));

async function serve(client) {
  const name = `${client.remoteAddress}:${client.remotePort} ${client.servername}`;
  const { host, port } = names.get(client.servername.toLowerCase());
  const server = tls.connect({ host, port, ca, servername: client.servername, allowHalfOpen: true });
  // It sees the bytes that go past JavaScript too, and those of the handshake.
  client.setTimeout(120_000, () => client.destroy());
  server.setTimeout(120_000, () => server.destroy(new Error('timeout')));
  try {
    // It begins when the server's certificate has been verified, and fails if that fails.
    const { bytesIn, bytesOut } = await client.pipeToNative(server);
    console.log(`${name} sent ${bytesIn} bytes and got ${bytesOut}`);
  } catch (err) {
    console.error(`${name} failed: ${err.message}`);
  } finally {
    client.destroy();
    server.destroy();
  }
}

// Without a certificate of its own: who asks for no name, or for one that is not
// here, gets no further than the handshake. No session is resumed: with TLS 1.2
// one would come without a name.
const proxy = tls.createServer({
  secureOptions: constants.SSL_OP_NO_TICKET,
  SNICallback: (name, callback) => callback(null, names.get(name.toLowerCase())?.context),
  allowHalfOpen: true,
}, serve);
proxy.on('tlsClientError', (err, { remoteAddress }) => console.error(`${remoteAddress} refused: ${err.message}`));

proxy.listen(Number(args.port), args.host, () => {
  const { address, port } = /** @type {import('node:net').AddressInfo} */ (proxy.address());
  console.log(`listening on ${address}:${port}`);
});
