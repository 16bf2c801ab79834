'use strict';

// usage: test/peers/run [WORD]: the tests with WORD in their name, or all

const assert = require('assert');
const { randomBytes } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const { buffer } = require('stream/consumers');
const { pipeline } = require('stream/promises');
const tls = require('tls');

const { ip, kRepo, killAll, run, start } = require('../tun/net');

const kNode = process.execPath;
const kHere = `${kRepo}/test/peers`;
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'peers-'));
process.chdir(work);

// The files of what the JDK sends, and the other side.
const jdk = randomBytes(300_001);
const other = randomBytes(200_003);

const tests = [];
// `body` gets what Peer.java is to do, with either version.
function test(name, body) {
  for (const version of ['TLSv1.3', 'TLSv1.2']) {
    const all = ['close', 'open', 'half', 'last'].map((way) => `${version}:${way}`);
    tests.push({ name: `${name}, ${version}`, body: () => body(all) });
  }
}

// Without a splice, there is no end after user_canceled and close_notify before the FIN, which 'open' lacks.
const withFin = (cases) => cases.filter((what) => what !== 'TLSv1.3:open');

// --- Programs -------------------------------------------------------------------------------------------------------

const examples = [];

// One of tools/examples, up; `port` is where it listens.
async function example(name, ...args) {
  const started = start('a', [kNode, '--disable-warning=ExperimentalWarning', `${kRepo}/tools/examples/${name}.js`,
                              '--port', '0', ...args]);
  examples.push(started);
  [, started.port] = await started.next(/^listening on .*:(\d+)$/);
  return started;
}

function java(...args) {
  return start('a', ['java', '-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC', '-cp', '.', 'Peer', ...args]);
}

function python(...args) {
  return start('a', ['python3', `${kHere}/peer.py`, ...args]);
}

// The JDK, or Python, says of each connection that it was good, in any order.
async function good(program, cases) {
  const left = new Set(cases);
  while (left.size > 0) {
    const [line, what] = await program.next(/^(TLSv\S+) (?:is good|failed: .*)$/);
    assert.strictEqual(line, `${what} is good`, program.output);
    assert(left.delete(what), what);
  }
}

function certificate(name, ...args) {
  run('a', ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc', '-days', '2',
            '-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`, ...args]);
}

// --- The other side, without TLS ------------------------------------------------------------------------------------

// The counterpart of Peer.java
async function talk(socket, what) {
  const { 1: way } = what.split(':');
  const received = buffer(socket);
  if (way === 'half')
    await received;
  socket.write(other);
  if (way !== 'last')
    await received;
  socket.end();
  assert(jdk.equals(await received));
}

// A server, for connections in this order; `done` is when all of them are over.
async function serve(cases) {
  const server = net.createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const done = (async () => {
    for (const what of cases) {
      const { 0: socket } = await once(server, 'connection');
      await talk(socket, what);
    }
    server.close();
  })();
  done.catch(() => {});
  return { port: server.address().port, done };
}

// --- What joins the two ---------------------------------------------------------------------------------------------

async function splice(socket, stream) {
  let ended = false;
  socket.on('end', () => { ended = true; });
  const { bytesIn, bytesOut, reason, closeNotify } = await socket.pipeToNative(stream);
  assert.deepStrictEqual({ bytesIn, bytesOut, reason, closeNotify, ended }, {
    bytesIn: jdk.length, bytesOut: other.length, reason: 'end', closeNotify: true, ended: true,
  });
}

async function pipe(socket, stream) {
  await Promise.all([pipeline(socket, stream), pipeline(stream, socket)]);
}

// --- JDK to a splice ------------------------------------------------------------------------------------------------

async function throughTerminator(name, cases) {
  const app = await serve(cases);
  const terminator = await example(name, '--key', 'localhost.key', '--cert', 'localhost.pem',
                                   '--tcp', `127.0.0.1:${app.port}`);
  const client = java('client', 'localhost', terminator.port, ...cases);
  await Promise.all([good(client, cases), app.done]);
  for (let i = 0; i < cases.length; i++) {
    const { 0: line } = await terminator.next(/^127\.0\.0\.1:.*/);
    assert.match(line, new RegExp(` sent ${jdk.length} bytes and got ${other.length}$`));
  }
}

test('a JDK client, through tls-terminator', (cases) => throughTerminator('tls-terminator', cases));
test('a JDK client, through tls-terminator-pipe', (cases) =>
  throughTerminator('tls-terminator-pipe', withFin(cases)));

test('a JDK client, and pipeToNative()', async (cases) => {
  const app = await serve(cases);
  const server = tls.createServer({
    key: fs.readFileSync('localhost.key'), cert: fs.readFileSync('localhost.pem'), allowHalfOpen: true,
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = java('client', 'localhost', `${server.address().port}`, ...cases);
  const clients = good(client, cases);
  clients.catch(() => {});
  for (let i = 0; i < cases.length; i++) {
    const { 0: socket } = await once(server, 'secureConnection');
    socket.on('error', () => {});
    const upstream = net.connect({ port: app.port, host: '127.0.0.1', allowHalfOpen: true });
    await once(upstream, 'connect');
    await splice(socket, upstream);
  }
  await Promise.all([clients, app.done]);
  server.close();
});

test('a JDK client, through sni-proxy, to Python', async (cases) => {
  const server = python('server', 'a.example', '0', ...cases);
  const { 1: port } = await server.next(/^listens on (\d+)$/);
  const proxy = await example('sni-proxy', '--certs', '.', '--ca', 'ca.pem', `a.example=127.0.0.1:${port}`);
  const client = java('client', 'a.example', proxy.port, ...cases);
  await Promise.all([good(client, cases), good(server, cases)]);
  for (let i = 0; i < cases.length; i++) {
    const { 0: line } = await proxy.next(/^127\.0\.0\.1:.*/);
    assert.match(line, new RegExp(` a\\.example sent ${jdk.length} bytes and got ${other.length}$`));
  }
});

// --- A splice to JDK ------------------------------------------------------------------------------------------------

// For each of the cases, what `use` does with the port of it.
async function toServer(name, cases, use) {
  const server = java('server', name, ...cases);
  const ports = [];
  for (const what of cases)
    ports.push((await server.next(new RegExp(`^${what} listens on (\\d+)$`)))[1]);
  for (const what of cases)
    await Promise.all([use(ports.shift(), what), good(server, [what])]);
}

test('a JDK server, behind tls-tunnel', (cases) => toServer('localhost', cases, async (port, what) => {
  const tunnel = await example('tls-tunnel', '--connect', `localhost:${port}`, '--ca', 'ca.pem');
  await talk(net.connect({ port: tunnel.port, host: '127.0.0.1', allowHalfOpen: true }), what);
  const { 0: line } = await tunnel.next(/^connection 1 .*/);
  assert.strictEqual(line, `connection 1 is over (end), sent ${other.length} bytes and got ${jdk.length}`);
}));

function joined(join) {
  return async (port, what) => {
    const listener = net.createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
    await once(listener, 'listening');
    const client = net.connect({ port: listener.address().port, host: '127.0.0.1', allowHalfOpen: true });
    const { 0: stream } = await once(listener, 'connection');
    listener.close();
    const socket = tls.connect({
      port, host: '127.0.0.1', servername: 'localhost', ca: fs.readFileSync('ca.pem'), allowHalfOpen: true,
    });
    socket.on('error', () => {});
    stream.on('error', () => {});
    await Promise.all([talk(client, what), join(socket, stream).finally(() => stream.destroy())]);
  };
}

test('a JDK server, and pipeToNative()', (cases) => toServer('localhost', cases, joined(splice)));
test('a JDK server, and pipeline()', (cases) => toServer('localhost', withFin(cases), joined(pipe)));

test('a JDK server, behind sni-proxy, and Python', (cases) => toServer('a.example', cases, async (port, what) => {
  const proxy = await example('sni-proxy', '--certs', '.', '--ca', 'ca.pem', `a.example=127.0.0.1:${port}`);
  await good(python('client', 'a.example', proxy.port, what), [what]);
  const { 0: line } = await proxy.next(/^127\.0\.0\.1:.*/);
  assert.match(line, new RegExp(` a\\.example sent ${other.length} bytes and got ${jdk.length}$`));
}));

// --- All of them ----------------------------------------------------------------------------------------------------

async function main() {
  ip('a', 'link set lo up');
  fs.writeFileSync('jdk', jdk);
  fs.writeFileSync('other', other);
  certificate('ca', '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign');
  for (const name of ['localhost', 'a.example']) {
    certificate(name, '-CA', 'ca.pem', '-CAkey', 'ca.key', '-addext', `subjectAltName=DNS:${name}`,
                '-addext', 'basicConstraints=critical,CA:FALSE');
  }
  run('a', ['javac', '-d', '.', `${kHere}/Peer.java`]);
  const word = process.argv[2] ?? '';
  let passed = 0;
  let failed = 0;
  for (const { name, body } of tests) {
    if (!name.includes(word))
      continue;
    const begin = process.hrtime.bigint();
    // Whatever waits for them is told.
    const deadline = setTimeout(killAll, 60_000);
    try {
      await body();
      for (const { child, name, output } of examples) {
        assert.strictEqual(child.exitCode, null, `${name}: ${output}`);
        assert.doesNotMatch(output, /^ +at |Warning|unhandled/im, name);
      }
      passed++;
      console.log(`ok - ${name} (${Math.round(Number(process.hrtime.bigint() - begin) / 1e6)} ms)`);
    } catch (err) {
      failed++;
      console.log(`not ok - ${name}\n${err.stack.replace(/^/gm, '    ')}`);
    }
    clearTimeout(deadline);
    examples.length = 0;
    await killAll();
  }
  process.chdir('/');
  fs.rmSync(work, { recursive: true });
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}
main();
