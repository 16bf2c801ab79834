'use strict';

// OpenJDK, as Java programs have it (Peer.java).

const assert = require('assert');
const fs = require('fs');
const net = require('net');
const { once } = require('events');

const { kRepo, run, start } = require('../tun/net');
const { listen, moves, toClients, toServers } = require('./paths');
const { digest, Received } = require('./streams');

const ways = ['close', 'open', 'half', 'last'];
const versions = ['TLSv1.2', 'TLSv1.3'];

// What the JDK sends, and the other side.
const files = { get sent() { return fs.readFileSync('sent'); }, get other() { return fs.readFileSync('other'); } };

function java(...args) {
  return start('a', ['java', '-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC', '-cp', '.', 'Peer', ...args]);
}

function python(...args) {
  return start('a', ['python3', `${__dirname}/peer.py`, ...args]);
}

// One of tools/examples, up; `port` is where it listens.
async function example(name, ...args) {
  const command = [process.execPath, '--disable-warning=ExperimentalWarning', `${kRepo}/tools/examples/${name}.js`,
                   '--port', '0', ...args];
  const started = start('a', command);
  [, started.port] = await started.next(/^listening on .*:(\d+)$/);
  return started;
}

// It is still there, and has said nothing unexpected.
function isWell({ child, name, output }) {
  assert.strictEqual(child.exitCode, null, `${name}: ${output}`);
  assert.doesNotMatch(output, /^ +at |Warning|unhandled/im, name);
}

// The JDK, or Python, says of each connection that it was good, in any order.
async function good(program, cases) {
  const left = new Set(cases);
  while (left.size > 0) {
    const { 0: line, 1: what } = await program.next(/^(TLSv\S+) (?:is good|failed: .*)$/);
    assert.strictEqual(line, `${what} is good`, program.output);
    assert(left.delete(what), what);
  }
}

// The counterpart of Peer.java, without TLS or with another one.
async function talk({ readable, writable }, what) {
  const { 1: way } = what.split(':');
  const received = new Received(readable);
  if (way === 'half')
    await received.end;
  writable.write(files.other);
  if (way !== 'last')
    await received.end;
  writable.end();
  assert.deepStrictEqual({ end: await received.end, got: digest(received.bytes) },
                         { end: 'end', got: digest(files.sent) });
}

// Without a splice, there is no end after user_canceled and close_notify before the FIN, which 'open' lacks. Nor is
// there one if a TLSSocket that JavaScript reads is at the other end.
function casesOf(move, version) {
  const all = ways.map((way) => `${version}:${way}`);
  return move === 'splice' ? all : all.filter((what) => what !== 'TLSv1.3:open');
}

async function useClient(make, move, version) {
  const cases = casesOf(move, version);
  const path = await make(move);
  const client = good(java('client', 'localhost', path.port, ...cases), cases);
  client.catch(() => {});
  for (const what of cases) {
    await talk(await path.open(), what);
    const outcome = await path.outcome();
    // With TLS 1.2 the JDK closes its socket as soon as it has the end, while Node may still have to send its own end.
    if (version === 'TLSv1.2' && outcome.error === 'EPIPE')
      delete outcome.error;
    assert.deepStrictEqual(outcome, { protocol: version }, `${move}, ${what}`);
  }
  await client;
}

// For each of the cases, what `use` does with the port of it.
async function toServer(name, cases, use) {
  const server = java('server', name, ...cases);
  const ports = [];
  for (const what of cases)
    ports.push((await server.next(new RegExp(`^${what} listens on (\\d+)$`)))[1]);
  for (const what of cases)
    await Promise.all([use(ports.shift(), what), good(server, [what])]);
}

function useServer(make, move, version) {
  return toServer('localhost', casesOf(move, version), async (port, what) => {
    const path = await make(move, port, version);
    await talk(await path.open(), what);
    assert.deepStrictEqual(await path.outcome(), { protocol: version }, `${move}, ${what}`);
  });
}

async function throughTerminator(cases) {
  const server = net.createServer({ allowHalfOpen: true });
  const terminator = await example('tls-terminator', '--key', 'localhost.key', '--cert', 'localhost.pem',
                                   '--tcp', `127.0.0.1:${await listen(server)}`);
  const client = good(java('client', 'localhost', terminator.port, ...cases), cases);
  client.catch(() => {});
  for (const what of cases) {
    const { 0: socket } = await once(server, 'connection');
    await talk({ readable: socket, writable: socket }, what);
    const { 0: line } = await terminator.next(/^127\.0\.0\.1:.*/);
    assert.match(line, new RegExp(` sent ${files.sent.length} bytes and got ${files.other.length}$`));
  }
  await client;
  isWell(terminator);
}

function sniProxy(port) {
  return example('sni-proxy', '--certs', '.', '--ca', 'ca.pem', `a.example=127.0.0.1:${port}`);
}

async function throughProxy(cases) {
  const server = python('server', 'a.example', '0', ...cases);
  const { 1: port } = await server.next(/^listens on (\d+)$/);
  const proxy = await sniProxy(port);
  const client = java('client', 'a.example', proxy.port, ...cases);
  await Promise.all([good(client, cases), good(server, cases)]);
  for (let i = 0; i < cases.length; i++) {
    const { 0: line } = await proxy.next(/^127\.0\.0\.1:.*/);
    assert.match(line, new RegExp(` a\\.example sent ${files.sent.length} bytes and got ${files.other.length}$`));
  }
  isWell(proxy);
}

async function behindTunnel(port, what) {
  const tunnel = await example('tls-tunnel', '--connect', `localhost:${port}`, '--ca', 'ca.pem');
  const socket = net.connect({ port: tunnel.port, host: '127.0.0.1', allowHalfOpen: true });
  await talk({ readable: socket, writable: socket }, what);
  const { 0: line } = await tunnel.next(/^connection 1 .*/);
  const { sent, other } = files;
  assert.strictEqual(line, `connection 1 is over (end), sent ${other.length} bytes and got ${sent.length}`);
  isWell(tunnel);
}

async function behindProxy(port, what) {
  const proxy = await sniProxy(port);
  await good(python('client', 'a.example', proxy.port, what), [what]);
  const { 0: line } = await proxy.next(/^127\.0\.0\.1:.*/);
  assert.match(line, new RegExp(` a\\.example sent ${files.other.length} bytes and got ${files.sent.length}$`));
  isWell(proxy);
}

const kPackage = 'default-jdk-headless';

const setUp = {
  [kPackage]: () => run('a', ['javac', '-d', '.', `${__dirname}/Peer.java`]),
};

function add(test) {
  for (const version of versions) {
    const cases = casesOf('splice', version);
    for (const [kind, make] of Object.entries(toClients)) {
      test(`OpenJDK as client, ${version}, ${kind}`, kPackage, () =>
        Promise.all(moves.map((move) => useClient(make, move, version))));
    }
    for (const [kind, make] of Object.entries(toServers)) {
      test(`OpenJDK as server, ${version}, ${kind}`, kPackage, () =>
        Promise.all(moves.map((move) => useServer(make, move, version))));
    }
    test(`OpenJDK as client, ${version}, through tls-terminator.js`, kPackage, () => throughTerminator(cases));
    test(`OpenJDK as client, ${version}, through sni-proxy.js, to Python`, kPackage, () => throughProxy(cases));
    test(`OpenJDK as server, ${version}, behind tls-tunnel.js`, kPackage, () => toServer('localhost', cases, behindTunnel));
    test(`OpenJDK as server, ${version}, behind sni-proxy.js, and Python`, kPackage, () =>
      toServer('a.example', cases, behindProxy));
  }
}

module.exports = { add, setUp };
