'use strict';

// The ways between a peer and this process, each through a forwarder.js of its own: by a splice on out/node, or by
// pipeline() on out/node-stock.

const fs = require('fs');
const net = require('net');
const tls = require('tls');
const { on, once } = require('events');

const { kRepo, run, start } = require('../tun/net');

const kForwarder = `${__dirname}/forwarder.js`;
const binaries = { splice: `${kRepo}/out/node`, pipeline: `${kRepo}/out/node-stock` };
const moves = Object.keys(binaries);

const kConnections = 40;
let count = 0;

class Path {
  constructor(move, from, to, options, open) {
    this.open = open;
    this.forwarder = start('a', [binaries[move], '--disable-warning=ExperimentalWarning', kForwarder, move, from, to,
                                 JSON.stringify(options)]);
  }

  // How the next connection has ended.
  async outcome() {
    const { 0: line } = await this.forwarder.next(/^\{.*\}$/);
    return JSON.parse(line);
  }
}

// A pair for each connection, since what is left of one must not get what belongs to the next.
function mkfifos() {
  const name = `fifo${++count}`;
  run('a', ['mkfifo', ...Array.from({ length: kConnections }, (_, i) => [`${name}.${i}.up`, `${name}.${i}.down`]).flat()]);
  return name;
}

function fifosOpener(name) {
  let next = 0;
  return async () => {
    const readable = fs.createReadStream(`${name}.${next}.up`);
    const writable = fs.createWriteStream(`${name}.${next}.down`);
    next++;
    writable.on('error', () => {});
    return { readable, writable };
  };
}

function both(socket) {
  socket.on('error', () => {});
  return { readable: socket, writable: socket };
}

// Gets the connections of a server one after the other, also those that have come before.
function opener(server, event) {
  const connections = on(server, event);
  return async () => both((await connections.next()).value[0]);
}

async function listen(server) {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  // It is there for as long as the tests are.
  server.unref();
  return server.address().port;
}

let nextPort = 20_000;

// One that nobody listens on: there is nobody else in this network.
function freePort() {
  return `${nextPort++}`;
}

// A forwarder that listens on `port`.
async function through(move, from, to, options = {}, open = undefined) {
  const path = new Path(move, from, to, options, open);
  [, path.port] = await path.forwarder.next(/^listening on .*:(\d+)$/);
  return path;
}

// From a peer that connects to `port`, to a stream of this process, which `open` gets for the next connection.
const toClients = {
  async terminator(move) {
    const server = net.createServer({ allowHalfOpen: true });
    const open = opener(server, 'connection');
    return through(move, 'tls', `tcp:${await listen(server)}`, {}, open);
  },
  async fifos(move) {
    const name = mkfifos();
    return through(move, 'tls', `fifo:${name}`, {}, fifosOpener(name));
  },
  async TLS(move) {
    const server = tls.createServer({
      key: fs.readFileSync('localhost.key'), cert: fs.readFileSync('localhost.pem'), allowHalfOpen: true,
    });
    const open = opener(server, 'secureConnection');
    return through(move, 'tls', `tls:${await listen(server)}`, {}, open);
  },
};

// From a stream of this process to a peer that listens on `port`, and has that version of TLS.
const toServers = {
  async tunnel(move, port) {
    const path = await through(move, 'tcp', `tls:${port}`, {}, async () =>
      both(net.connect({ port: path.port, host: '127.0.0.1', allowHalfOpen: true })));
    return path;
  },
  async fifos(move, port) {
    const name = mkfifos();
    return new Path(move, `fifo:${name}`, `tls:${port}`, {}, fifosOpener(name));
  },
  async TLS(move, port, version) {
    const path = await through(move, 'tls', `tls:${port}`, {}, async () => both(tls.connect({
      port: path.port, host: '127.0.0.1', servername: 'localhost', ca: fs.readFileSync('ca.pem'), allowHalfOpen: true,
      maxVersion: version,
    })));
    return path;
  },
};

module.exports = { freePort, listen, moves, through, toClients, toServers };
