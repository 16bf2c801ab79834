'use strict';

// The TLS terminator that the benchmark measures, on Node: each connection is
// joined to one to the endpoint, by the pump that is asked for. It answers
// each message with what has happened since the one before.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const tls = require('node:tls');
const { once } = require('node:events');
const { monitorEventLoopDelay, performance } = require('node:perf_hooks');
const { pipeline } = require('node:stream');
const { parseArgs } = require('node:util');

const { values: args } = parseArgs({ options: {
  port: { type: 'string' },
  upstream: { type: 'string' },
  pump: { type: 'string' },
  delay: { type: 'boolean', default: false },
  cert: { type: 'string' },
  key: { type: 'string' },
} });

const [kind, address] = args.upstream.split(':');
const handles = new Set();
let joining = 0;

// Each is given the TLS socket, and what to write to and to read from.
const pumps = {
  // What the connections cost by themselves.
  'none'() {},
  'pipe'(client, sink, source) {
    client.pipe(sink);
    source.pipe(client);
  },
  'pipeline'(client, sink, source) {
    pipeline(client, sink, () => {});
    pipeline(source, client, () => {});
  },
  'splice'(client, sink, source) {
    splice(client, { stream: sink });
  },
  'splice-fd'(client, sink, source) {
    if (sink === source)
      return splice(client, { fd: sink._handle.fd });
    splice(client, { fd: sink, direction: 'in' });
    splice(client, { fd: source, direction: 'out' });
  },
};

function splice(client, options) {
  const handle = client.spliceTo(options);
  handles.add(handle);
  handle.on('error', () => {});
  handle.on('close', () => handles.delete(handle));
  handle.start();
}

function openFifos() {
  const sink = fs.openSync(path.join(address, 'in'), fs.constants.O_WRONLY | fs.constants.O_NONBLOCK);
  const source = fs.openSync(path.join(address, 'out'), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  if (args.pump === 'splice-fd')
    return [sink, source];
  return [
    new net.Socket({ fd: sink, readable: false, writable: true }),
    new net.Socket({ fd: source, readable: true, writable: false }),
  ];
}

async function connect() {
  const options = kind === 'unix' ? { path: address } : { port: address, host: '127.0.0.1', noDelay: true };
  const socket = net.connect(options);
  socket.on('error', () => {});
  // Node must not read from a socket whose descriptor somebody else reads.
  if (args.pump === 'splice-fd' || args.pump === 'none')
    socket.pause();
  await once(socket, 'connect');
  return [socket, socket];
}

async function serve(client) {
  joining++;
  client.on('error', () => {});
  try {
    const [sink, source] = kind === 'fifo' ? openFifos() : await connect();
    pumps[args.pump](client, sink, source);
  } finally {
    joining--;
  }
}

const delay = args.delay ? monitorEventLoopDelay({ resolution: 1 }) : undefined;
delay?.enable();
let loop = performance.eventLoopUtilization();

process.on('message', function report() {
  if (joining > 0)
    return setTimeout(report, 1);
  // What is garbage already should not count as memory that is held.
  globalThis.gc?.();
  const stats = [...handles].map((handle) => handle.stats);
  process.send({
    loop: performance.eventLoopUtilization(loop).utilization,
    delay: delay && delay.percentile(99) / 1e6,
    buffered: Math.max(0, ...stats.map(({ peakBufferedIn, peakBufferedOut }) =>
      Math.max(peakBufferedIn, peakBufferedOut))),
  });
  loop = performance.eventLoopUtilization();
  delay?.reset();
});

tls.createServer({
  key: fs.readFileSync(args.key),
  cert: fs.readFileSync(args.cert),
  noDelay: true,
}, serve).listen(args.port, '127.0.0.1', 1024);
