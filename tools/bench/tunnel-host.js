'use strict';

// The host's end of a tunnel to an iOS device, as a program has it that uses appium-ios-tuntap: by the package's own
// forwarder on a Node without splices, and otherwise by tools/examples/appium-forwarder.js.
//
// usage: node tunnel-host.js connect HOST PORT CERT KEY
//
// With BUSY in the environment its main thread is blocked for 300 ms of each 600.

const fs = require('node:fs');
const net = require('node:net');
const { once } = require('node:events');
const { performance } = require('node:perf_hooks');
const { connectToTunnelLockdown } = require('./appium-forwarder.js');

const { 3: host, 4: port, 5: cert, 6: key } = process.argv;

function block() {
  const end = performance.now() + 300;
  while (performance.now() < end);
}

async function main() {
  const socket = net.connect({ host, port: Number(port) });
  await once(socket, 'connect');
  await connectToTunnelLockdown(socket, { cert: fs.readFileSync(cert, 'utf8'), key: fs.readFileSync(key, 'utf8') }, {
    onDead: (message) => console.error(`dead: ${message}`),
  });
  console.log('up');
  if (process.env.BUSY)
    setInterval(block, 600);
}
main();
