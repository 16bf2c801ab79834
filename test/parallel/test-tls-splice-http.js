'use strict';

// Sockets of HTTP: those of CONNECT and Upgrade splice, with their head first, be it an
// option or unshifted; those that a parser or an HTTP/2 session owns are refused.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const http2 = require('http2');
const https = require('https');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  MiB, cert, key, payload, receive, run, send, socketPair,
} = require('../common/tls-splice');

const kSize = 2 * MiB + 7;
const state = { code: 'ERR_INVALID_STATE', name: 'Error' };

// The beginning of what the client sends comes with the request, as its head.
async function tunnel(request, event, answer, by) {
  const server = https.createServer({ key, cert });
  server.listen(0);
  await once(server, 'listening');
  const switched = once(server, event);
  const chunks = [...payload(kSize, 1)];
  const socket = tls.connect({
    port: server.address().port, rejectUnauthorized: false, allowHalfOpen: true,
  });
  socket.write(Buffer.concat([Buffer.from(request), chunks.shift()]));
  const { 1: serverSide, 2: head } = await switched;
  assert(head.length > 0);
  serverSide.write(answer);
  if (by === 'unshift')
    serverSide.unshift(head);

  const { 0: endpoint, 1: other } = await socketPair();
  const done = serverSide.pipeToNative(endpoint, by === 'head' ? { head } : {});
  const inward = receive(other);
  for (const chunk of chunks)
    socket.write(chunk);
  const sending = send(other, kSize, { seed: 2 });
  await once(socket, 'readable');
  assert.strictEqual(`${socket.read(answer.length)}`, answer);
  const outward = receive(socket);
  // An https.Server's socket is not half-open: when the client ends, so does it.
  await Promise.all([
    inward.receiver.reached(kSize), outward.receiver.reached(kSize),
  ]);
  socket.end();
  const stats = await done;
  await sending;
  (await inward).check(kSize, 1);
  (await outward).check(kSize, 2);
  assert.strictEqual(stats.bytesIn, kSize);
  assert.strictEqual(stats.bytesOut, kSize);
  assert.strictEqual(stats.reason, 'end');
  server.close();
}

run(async () => {
  for (const by of ['head', 'unshift']) {
    await tunnel(
      'CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n', 'connect',
      'HTTP/1.1 200 Connection established\r\n\r\n', by);
    await tunnel(
      'GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n', 'upgrade',
      'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n', by);
  }
});

// The client's side of CONNECT and Upgrade
run(async () => {
  for (const event of ['connect', 'upgrade']) {
    const server = https.createServer({ key, cert });
    server.on(event, common.mustCall((req, socket) => {
      socket.write(event === 'connect' ? 'HTTP/1.1 200 OK\r\n\r\nhead' :
        'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhead');
      socket.end(' tail');
      socket.resume();
    }));
    server.listen(0);
    await once(server, 'listening');
    const request = https.request({
      port: server.address().port,
      rejectUnauthorized: false,
      agent: false,
      ...(event === 'connect' ? { method: 'CONNECT', path: 'example.com:443' } :
        { headers: { Connection: 'Upgrade', Upgrade: 'x' } }),
    }).end();
    const { 1: socket, 2: head } = await once(request, event);
    const { 0: endpoint, 1: other } = await socketPair();
    const received = other.setEncoding('utf8').toArray();
    other.end();
    await socket.pipeToNative(endpoint, { head });
    assert.strictEqual((await received).join(''), 'head tail');
    server.close();
  }
});

// A socket with a live parser, on both sides
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  let answer;
  const server = https.createServer({ key, cert }, common.mustCall((req, res) => {
    assert.throws(() => req.socket.spliceTo({ stream: endpoint }), state);
    assert.rejects(req.socket.pipeToNative(endpoint), state)
      .then(common.mustCall(() => res.write('ans')));
    answer = res;
  }));
  server.listen(0);
  await once(server, 'listening');
  const request = https.get({
    port: server.address().port, rejectUnauthorized: false, agent: false,
  });
  const { 0: response } = await once(request, 'response');
  assert.throws(() => request.socket.spliceTo({ stream: endpoint }), state);
  answer.end('wer');
  assert.strictEqual((await response.setEncoding('utf8').toArray()).join(''), 'answer');
  server.close();
  endpoint.destroy();
  other.destroy();
});

// HTTP/2 sessions, on both sides
run(async () => {
  const { 0: endpoint, 1: other } = await socketPair();
  const server = http2.createSecureServer({ key, cert });
  let serverSide;
  server.on('secureConnection', (socket) => { serverSide = socket; });
  server.on('stream', common.mustCall((stream) => {
    assert.throws(() => serverSide.spliceTo({ stream: endpoint }), state);
    stream.respond();
    stream.end('answer');
  }));
  server.listen(0);
  await once(server, 'listening');
  const socket = tls.connect({
    port: server.address().port, rejectUnauthorized: false, ALPNProtocols: ['h2'],
  });
  await once(socket, 'secureConnect');
  const session = http2.connect(`https://localhost:${server.address().port}`, {
    createConnection: () => socket,
  });
  const stream = session.request();
  assert.throws(() => socket.spliceTo({ stream: endpoint }), state);
  await assert.rejects(socket.pipeToNative(endpoint), state);
  assert.strictEqual((await stream.setEncoding('utf8').toArray()).join(''), 'answer');
  session.close();
  server.close();
  endpoint.destroy();
  other.destroy();
});
