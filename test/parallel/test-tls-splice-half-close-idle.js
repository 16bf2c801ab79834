'use strict';

// While one direction goes on, the end of the other one costs nothing: what has ended is
// not read in each turn of the event loop.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const { performance } = require('perf_hooks');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { receive, run, socketPair, tlsPair, turns } = require('../common/tls-splice');

const kTurns = 100;

// How many events the event loop has handled in so many turns.
async function eventsOfTurns() {
  const { events } = performance.nodeTiming.uvMetricsInfo;
  await turns(kTurns);
  return performance.nodeTiming.uvMetricsInfo.events - events;
}

async function test(who, kind, endpointOf) {
  const { client, server, raw } = await tlsPair({ allowHalfOpen: true, raw: true });
  // Nobody else reads from the endpoint.
  const { 0: other, 1: endpoint } = await socketPair(kind, { pauseOnConnect: true });
  const splice = server.spliceTo(endpointOf(endpoint)).start();
  const { 0: first, 1: last } = who === 'endpoint' ? [other, client] : [client, other];
  const received = [receive(client), receive(other)];
  first.write('hello');
  const ended = once(last, 'end');
  if (who === 'connection')
    raw.end();
  else
    first.end();
  await ended;
  // A close_notify is followed by the end of the connection.
  await turns();
  const events = await eventsOfTurns();
  assert(events < kTurns / 2, `${who}, ${kind}: ${events} events`);
  assert.strictEqual(splice.state, 'running');
  last.end('bye');
  await Promise.all(received);
  await splice.finished;
}

run(async () => {
  for (const who of ['peer', 'connection', 'endpoint']) {
    for (const kind of ['tcp', 'unix']) {
      await test(who, kind, (stream) => ({ stream }));
      await test(who, kind, ({ _handle: { fd } }) => ({ fd }));
    }
  }
});
