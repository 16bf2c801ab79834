'use strict';

// Prints what there is to be seen of sockets that no splice uses: their properties, those of
// what they are made of and of all prototypes, and their listeners. The properties that the
// series adds on purpose are left out, so that both executables print the same.

const { once } = require('events');
const fs = require('fs');
const net = require('net');
const path = require('path');
const tls = require('tls');

const fixtures = path.join(process.argv[2], 'test/fixtures/keys');
const key = fs.readFileSync(path.join(fixtures, 'agent1-key.pem'));
const cert = fs.readFileSync(path.join(fixtures, 'agent1-cert.pem'));
const kAdded = new Set(['spliceTo', 'pipeToNative']);

function namesOf(object) {
  return Reflect.ownKeys(object).map((key) => {
    const { enumerable, configurable, writable } = Object.getOwnPropertyDescriptor(object, key);
    return `${String(key)} ${[enumerable && 'e', configurable && 'c', writable && 'w'].filter(Boolean).join('')}`;
  }).filter((name) => !kAdded.has(name.split(' ')[0])).sort().join(', ');
}

function print(title, socket) {
  console.log(`${title}: ${namesOf(socket)}`);
  console.log(`${title} listens: ${socket.eventNames().map((name) =>
    `${String(name)} ${socket.listenerCount(name)}`).sort().join(', ')}`);
  for (const part of ['_handle', '_readableState', '_writableState'])
    console.log(`${title}.${part}: ${socket[part] ? namesOf(socket[part]) : 'none'}`);
}

function printPrototypes(title, object) {
  let depth = 0;
  for (let of = Object.getPrototypeOf(object); of !== null; of = Object.getPrototypeOf(of))
    console.log(`${title}, prototype ${++depth}: ${namesOf(of)}`);
}

async function main() {
  const server = tls.createServer({ key, cert }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const accepted = once(server, 'secureConnection');
  const client = tls.connect({ port: server.address().port, host: '127.0.0.1', rejectUnauthorized: false });
  print('a TLSSocket that connects', client);
  await once(client, 'secureConnect');
  const { 0: peer } = await accepted;
  client.write('x');
  await once(peer, 'data');
  print('the TLSSocket of a client', client);
  print('the TLSSocket of a server', peer);
  printPrototypes('TLSSocket', client);
  const plain = new net.Socket();
  print('a net.Socket', plain);
  printPrototypes('net.Socket', plain);
  client.destroy();
  peer.destroy();
  await Promise.all([once(client, 'close'), once(peer, 'close')]);
  print('a TLSSocket that is closed', client);
  server.close();
}

main();
