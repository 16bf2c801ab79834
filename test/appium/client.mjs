// What a program does that uses the packages: connects to a device, and has a tunnel to it until stdin ends. By usbmuxd
// that is by appium-ios-remotexpc, and otherwise by the functions of the adapter.
//
// usage: node client.mjs PORT|USBMUXD-SOCKET CERT-AND-KEY|PSK [forget]
//
// Once the tunnel is there, this process does nothing else than wait for the packets of `ping`. The argument PSK is
// hexadecimal, CERT-AND-KEY are two files with a comma in between. With `forget` it has nothing to do any more when the
// tunnel is dead, and does not close it.

import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import net from 'node:net';
import { TunnelManager, createUsbmux } from 'appium-ios-remotexpc';
import forwarder from './appium-forwarder.js';

const kDeviceID = 7;
const kDevicePort = 62078;

async function connect(where) {
  if (where.includes('/'))
    return (await createUsbmux({ socketPath: where })).connect(kDeviceID, kDevicePort);
  const socket = net.connect({ port: Number(where), host: '127.0.0.1' });
  await once(socket, 'connect');
  return socket;
}

const adapter = { getTunnel: forwarder.connectToTunnelLockdown, getTunnelPsk: forwarder.connectToTunnelPsk };

const { 2: where, 3: credentials, 4: forget } = process.argv;
const tunnels = where.includes('/') ? TunnelManager : adapter;
const socket = await connect(where);
socket.on('close', () => console.log('the socket is closed'));
function onDead(message) {
  console.log(`dead: ${message}`);
  if (forget)
    process.stdin.unref();
}
let tunnel;
if (credentials.includes(',')) {
  const [cert, key] = credentials.split(',').map((file) => readFileSync(file, 'utf8'));
  tunnel = await tunnels.getTunnel(socket, { cert, key }, { onDead });
} else {
  tunnel = await tunnels.getTunnelPsk(socket, { psk: Buffer.from(credentials, 'hex') }, { onDead });
}
console.log(`up: ${tunnel.Address} ${tunnel.RsdPort}`);
execFileSync('ping', ['-n', '-q', '-c', '3', '-i', '0.01', '-w', '20', '-s', '1000', tunnel.Address]);
console.log('pinged');
process.stdin.resume().once('end', async () => {
  await tunnel.closer();
  console.log('closed');
});
