'use strict';

// What happens to a splice in one turn of the event loop together with something that
// JavaScript does, which hears of it later.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const assert = require('assert');
const { closing, run, settled, socketPair, tlsPair, turns } = require('../common/tls-splice');

// The source has ended, and then the user ends the socket: that is finished before
// JavaScript hears of the source.
for (const kind of ['fd', 'stream']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: far } = await socketPair('unix');
    const target = kind === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
    const splice = server.spliceTo({ ...target, direction: 'out' }).start();
    client.resume();
    far.write('bytes');
    await turns();
    server.on('data', common.mustCall(() => server.end()));
    // The shutdown of the far side has just been done, and nothing was polled since.
    far.end(() => client.write('x'));
    const { reason, bytesOut } = await closing(splice);
    assert.strictEqual(reason, 'end');
    assert.strictEqual(bytesOut, 5);
    client.destroy();
    endpoint.destroy();
  });
}

// The endpoint fails, and then the user stops the splice or destroys the socket: the failure
// is the reason.
for (const kind of ['fd', 'stream']) {
  for (const direction of ['in', 'out', 'duplex']) {
    // JavaScript reads the stream, which tells of the reset itself.
    if (kind === 'stream' && direction === 'in')
      continue;
    for (const way of ['stop', 'abort', 'destroy', 'destroy with an error']) {
      run(async () => {
        const { client, server } = await tlsPair({ allowHalfOpen: true });
        const { 0: endpoint, 1: far } = await socketPair();
        const { 0: trigger, 1: triggered } = await socketPair();
        const controller = new AbortController();
        const target = kind === 'fd' ? { fd: endpoint._handle.fd } : { stream: endpoint };
        const splice = server.spliceTo({ ...target, direction, signal: controller.signal }).start();
        endpoint.on('error', common.mustNotCall());
        server.on('error', common.mustCall(way === 'destroy with an error' ? 1 : 0));
        client.resume();
        // The sink is written to when it is reset.
        if (direction !== 'out') {
          far.pause();
          for (let i = 0; i < 16; i++)
            client.write(Buffer.alloc(1024 * 1024));
          await settled(() => splice.stats.bytesIn);
          assert.ok(splice.stats.bytesIn < 16 * 1024 * 1024);
        }
        await turns();
        triggered.on('data', common.mustCall(() => {
          if (way === 'stop')
            splice.stop();
          else if (way === 'abort')
            controller.abort();
          else
            server.destroy(way === 'destroy' ? undefined : new Error('of the user'));
        }));
        const closed = closing(splice);
        splice.on('error', () => {});
        // At once: resetAndDestroy() would end the stream first.
        far._handle.reset();
        trigger.write('now');
        const { reason } = await closed;
        assert.strictEqual(reason, 'error');
        assert.match(splice.errored.code, /^(ECONNRESET|EPIPE)$/);
        assert.strictEqual(splice.errored.side, 'endpoint');
        for (const socket of [client, server, far, endpoint, trigger, triggered])
          socket.destroy();
      });
    }
  }
}
