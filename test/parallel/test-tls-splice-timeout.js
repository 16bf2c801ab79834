'use strict';

// The idle timeout of the socket sees what moves in native code: it does not
// run out while bytes move, and does when they do not, once each time.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { createHook } = require('async_hooks');
const { once } = require('events');
const { setTimeout: sleep } = require('timers/promises');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  closing, run, socketPair, tlsOver, tlsPair, turns,
} = require('../common/tls-splice');

// Watches the timers that begin from now on.
function runningTimers() {
  const running = new Set();
  const hook = createHook({
    init(id, type) {
      if (type === 'Timeout')
        running.add(id);
    },
    destroy(id) {
      running.delete(id);
    },
  }).enable();
  return {
    // How many run. A hook hears of the end of a timer in a later turn.
    async count() {
      await turns();
      return running.size;
    },
    disable: () => hook.disable(),
  };
}

for (const direction of ['in', 'out']) {
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const { 0: from, 1: to } = direction === 'in' ? [client, other] : [other, client];
    const kTimeout = common.platformTimeout(400);
    let timeouts = 0;
    server.setTimeout(kTimeout, () => timeouts++);
    const splice = server.spliceTo({ stream: endpoint, direction }).start();

    // A byte every now and then, for several times the timeout
    const start = process.hrtime.bigint();
    let last = start;
    let longest = 0n;
    to.on('data', () => {
      const now = process.hrtime.bigint();
      if (now - last > longest)
        longest = now - last;
      last = now;
    });
    const timer = setInterval(() => from.write('x'), kTimeout / 8);
    while (process.hrtime.bigint() - start < BigInt(kTimeout * 4) * 1000000n)
      await once(to, 'data');
    clearInterval(timer);
    // On a machine that is too slow for that there is nothing to see.
    if (longest < BigInt(kTimeout) * 900000n)
      assert.strictEqual(timeouts, 0);

    // And none any more
    if (timeouts === 0)
      await once(server, 'timeout');
    assert.strictEqual(splice.state, 'running');
    assert.strictEqual(server.destroyed, false);

    // The time starts over when JS has the socket again.
    const timedOut = once(server, 'timeout');
    await splice.stop();
    await timedOut;
  });

  // A spliced socket on which a byte has moved since the timeout was set. The time
  // JS knows of is over by then, the time since that byte is not.
  const kShort = common.platformTimeout(100);
  async function rearmed() {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const { 0: from, 1: to } = direction === 'in' ? [client, other] : [other, client];
    server.spliceTo({ stream: endpoint, direction }).start();
    server.setTimeout(kShort);
    const over = sleep(kShort * 1.2);
    await sleep(kShort * 0.6);
    from.write('x');
    await once(to, 'data');
    await over;
    return { from, to, server };
  }

  // None any more after setTimeout(0)
  run(async () => {
    const { server } = await rearmed();
    server.setTimeout(0);
    server.on('timeout', common.mustNotCall());
    await sleep(kShort * 2);
  });

  // One after the time is set anew
  run(async () => {
    const { server } = await rearmed();
    server.setTimeout(kShort);
    server.on('timeout', common.mustCall());
    await sleep(kShort * 3);
  });

  // A listener that destroys the socket, or the endpoint, or ends the splice: no other
  // timer is begun, or left over, which would keep them for as long as the one that has
  // run out.
  for (const by of ['server', 'endpoint']) {
    for (const act of ['destroy', 'stop', 'setTimeout', 'nothing']) {
      run(async () => {
        const { server } = await tlsPair({ allowHalfOpen: true });
        const { 0: endpoint } = await socketPair();
        const splice = server.spliceTo({ stream: endpoint, direction });
        splice.on('error', () => {});
        splice.start();
        const socket = by === 'server' ? server : endpoint;
        const timers = runningTimers();
        socket.setTimeout(kShort);
        const closed = closing(splice);
        await new Promise((resolve) => socket.once('timeout', () => {
          if (act === 'destroy')
            socket.destroy();
          else if (act === 'stop')
            splice.stop();
          else if (act === 'setTimeout')
            socket.setTimeout(0);
          resolve();
        }));
        if (act === 'setTimeout')
          assert.strictEqual(await timers.count(), 0);
        else if (act === 'nothing')
          await turns();
        splice.stop();
        await closed;
        // The timer of a socket that has its timeout back is the socket's own.
        if (act !== 'destroy')
          socket.setTimeout(0);
        assert.strictEqual(await timers.count(), 0);
        timers.disable();
      });
    }
  }

  // Another one each time when bytes have moved again
  run(async () => {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    const { 0: endpoint, 1: other } = await socketPair();
    const { 0: from, 1: to } = direction === 'in' ? [client, other] : [other, client];
    server.spliceTo({ stream: endpoint, direction }).start();
    server.setTimeout(kShort);
    await once(server, 'timeout');
    for (let i = 0; i < 2; i++) {
      from.write('x');
      await Promise.all([once(to, 'data'), once(server, 'timeout')]);
    }
  });
}

// The sockets below a spliced TLSSocket are as busy as that is.
for (const kind of ['net.Socket', 'net.Socket of a server', 'TLSSocket']) {
  run(async () => {
    const { 0: a, 1: b } = await socketPair();
    let below = kind === 'net.Socket' ? a : b;
    let pair;
    if (kind === 'TLSSocket') {
      const outer = tlsOver(a, b, { allowHalfOpen: true });
      await once(outer.client, 'secureConnect');
      below = outer.client;
      pair = tlsOver(outer.client, outer.server, { allowHalfOpen: true });
    } else {
      pair = tlsOver(a, b, { allowHalfOpen: true });
    }
    const { client, server } = pair;
    await once(client, 'secureConnect');
    const spliced = below === b ? server : client;
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = spliced.spliceTo({ stream: endpoint }).start();
    const peer = spliced === client ? server : client;

    const kTimeout = common.platformTimeout(400);
    let timeouts = 0;
    below.setTimeout(kTimeout, () => timeouts++);
    const start = process.hrtime.bigint();
    let last = start;
    let longest = 0n;
    other.on('data', () => {
      const now = process.hrtime.bigint();
      if (now - last > longest)
        longest = now - last;
      last = now;
    });
    const timer = setInterval(() => peer.write('x'), kTimeout / 8);
    while (process.hrtime.bigint() - start < BigInt(kTimeout * 4) * 1000000n)
      await once(other, 'data');
    clearInterval(timer);
    // On a machine that is too slow for that there is nothing to see.
    if (longest < BigInt(kTimeout) * 900000n)
      assert.strictEqual(timeouts, 0);

    if (timeouts === 0)
      await once(below, 'timeout');
    await splice.stop();
    below.setTimeout(0);
  });
}
