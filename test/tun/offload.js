'use strict';

// Super-packets: TUN devices with IFF_VNET_HDR and their offloads (tun-exec --offload) at either end of a tunnel, or both.

const assert = require('assert');
const { createHash, randomBytes } = require('crypto');
const fs = require('fs');

const { ip, kExec, kRepo, killAll, ping, pingUntilAnswered, run, start } = require('./net');
const { byFlow, forwarded, isFor, makePackets } = require('./packets');

const kNode = `${kRepo}/out/node`;
const offload = { flags: ['--offload'] };
const ends = { 'both ends': { a: offload, b: offload }, 'end a': { a: offload }, 'end b': { b: offload } };

module.exports = (test, helpers, work, refuse) => {
  const {
    address, address6, assertIntact, assertNoDrops, configure, counters, end, endpoint, env, iperf, kHasUso, stats, sweep,
    tunnel,
  } = helpers;

  // Sends a file there and back, and compares hashes.
  async function transfer(to = address.b, serverIn = (...command) => start('b', command), size = 32) {
    const file = `${work}/sent`;
    const bytes = randomBytes(size * 1024 * 1024);
    const hash = createHash('sha256').update(bytes).digest('hex');
    fs.writeFileSync(file, bytes);
    const server = serverIn(kNode, `${__dirname}/http.js`, to, file);
    const { 1: port } = await server.next(/^listening on (.*)/);
    const url = `http://${to.includes(':') ? `[${to}]` : to}:${port}/`;
    assert.strictEqual(await start('a', ['curl', '-sSf', '-T', file, url]).done(), hash);
    await start('a', ['curl', '-sSf', '-o', `${work}/down`, url]).done();
    assert.strictEqual(createHash('sha256').update(fs.readFileSync(`${work}/down`)).digest('hex'), hash);
    await server.kill();
  }

  // Sends datagrams with UDP_SEGMENT, to which more arguments can be given.
  async function segments(to, size, receiverIn = (...command) => start('b', command), ...args) {
    const receiver = receiverIn('python3', `${__dirname}/segments.py`, 'receive', to);
    const { 1: port } = await receiver.next(/^listening on (.*)/);
    const command = ['python3', `${__dirname}/segments.py`, 'send', to, port, `${size}`, ...args];
    assert.match(await start('a', command).done(), /^\d+ datagrams$/m);
    await receiver.kill();
  }

  // 1: ask for ECN; 2, the default: accept it.
  function ecn(value) {
    for (const ns of ['a', 'b'])
      run(ns, ['sh', '-c', `echo ${value} >/proc/sys/net/ipv4/tcp_ecn`]);
  }

  // A network namespace of its own: what is started in it, and its process, which others can name.
  async function namespace() {
    const holder = start('b', ['unshare', '--net', 'sh', '-c', 'ip link set lo up; echo ready; exec sleep infinity']);
    await holder.next(/^ready/);
    const { pid } = holder.child;
    const enter = ['nsenter', `--net=/proc/${pid}/ns/net`];
    return { pid, enter, start: (...command) => start('a', [...enter, ...command]) };
  }

  const forward = 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding';

  // A device without offloads neither gives nor gets super-packets, and one with them does both.
  function assertSuper(at, both) {
    for (const { 0: i, 1: name } of ['a', 'b'].entries()) {
      const { superPacketsIn, superPacketsOut, superPacketsRefused } = both[i];
      assert.strictEqual(superPacketsIn > 0, at[name] !== undefined, `${superPacketsIn} to ${name}`);
      assert.strictEqual(superPacketsOut > 0, at[name] !== undefined, `${superPacketsOut} from ${name}`);
      // A kernel that cannot segment UDP refuses what is joined of it.
      assert(superPacketsRefused <= (kHasUso ? 0 : 1), `${superPacketsRefused} refused by ${name}`);
    }
  }

  for (const { 0: where, 1: at } of Object.entries(ends)) {
    for (const mtu of [1280, 1400, 1500, 9000, 65000]) {
      test(`offload at ${where}, mtu ${mtu}: ping of all sizes, iperf3`, async () => {
        const both = await tunnel({ mtu, at });
        await sweep(mtu);
        for (const to of [address.b, address6.b]) {
          for (const way of [[], ['-R'], ['-P', '8', '--bidir']]) {
            const tcp = await iperf('-c', to, ...way);
            assert(tcp.sum_sent.bytes > 1e6);
            assert(tcp.sum_received.bytes > 1e6);
          }
        }
        for (const to of [address.b, address6.b]) {
          const { sum } = await iperf('-c', to, '-u', '-b', '20M', '-l', `${Math.min(mtu, 60000) - 100}`);
          assert(sum.packets > 10 && sum.lost_percent < 50);
        }
        const all = await end(both);
        assertNoDrops(...all);
        for (const { largestPacketIn, largestPacketOut, packetsIn, packetsOut } of all) {
          assert.strictEqual(largestPacketIn, mtu);
          assert.strictEqual(largestPacketOut, mtu);
          assert(packetsIn > 50 && packetsOut > 50);
        }
        // Two packets of the largest size are more than IP can say.
        if (mtu < 65000)
          assertSuper(at, all);
        assertIntact();
      });
    }

    test(`offload at ${where}: a file through a short queue`, async () => {
      const both = await tunnel({ mtu: 1400, at });
      for (const ns of ['a', 'b'])
        ip(ns, 'link set dev tun txqueuelen 3');
      await transfer(address.b, undefined, 8);
      await transfer(address6.b, undefined, 8);
      // What is lost is sent again.
      const lost = ['a', 'b'].map((ns) => JSON.parse(ip(ns, '-s -j link show dev tun'))[0].stats64.tx.dropped);
      assert(lost[0] > 0 && lost[1] > 0, `${lost}`);
      assertNoDrops(...await end(both));
      assertIntact();
    });

    test(`offload at ${where}: a file with congestion that is marked (ECN)`, async () => {
      const both = await tunnel({ mtu: 1400, at });
      // One in eight packets of the kernel says that it has seen congestion.
      const rules = `table inet congestion {
        chain marked {
          type filter hook postrouting priority 0;
          oifname tun ip ecn ect0 numgen random mod 8 == 0 ip ecn set ce
          oifname tun ip6 ecn ect0 numgen random mod 8 == 0 ip6 ecn set ce
        }
        chain seen {
          type filter hook prerouting priority 0;
          iifname tun ip ecn ce counter
          iifname tun ip6 ecn ce counter
          iifname tun meta nfproto ipv4 tcp flags & ecn == ecn counter
          iifname tun meta nfproto ipv6 tcp flags & ecn == ecn counter
          iifname tun meta nfproto ipv4 tcp flags & cwr == cwr counter
          iifname tun meta nfproto ipv6 tcp flags & cwr == cwr counter
        }
      }`;
      try {
        for (const ns of ['a', 'b'])
          run(ns, ['nft', rules]);
      } catch (err) {
        if (/not supported/.test(err.message))
          return 'this kernel has no nf_tables';
        throw err;
      }
      ecn(1);
      await transfer(address.b, undefined, 8);
      await transfer(address6.b, undefined, 8);
      ecn(2);
      for (const ns of ['a', 'b']) {
        const counts = [...run(ns, ['nft', 'list', 'ruleset']).matchAll(/counter packets (\d+)/g)];
        assert.strictEqual(counts.length, 6);
        for (const { 1: count, index } of counts)
          assert(Number(count) > 0, `${ns}, ${index}`);
        run(ns, ['nft', 'flush', 'ruleset']);
      }
      const all = await end(both);
      assertNoDrops(...all);
      assertSuper(at, all);
      assertIntact();
    });

    for (const netem of ['loss 1%', 'loss 1% ecn', 'delay 2ms reorder 5%']) {
      test(`offload at ${where}: a file with ${netem}`, async () => {
        const both = await tunnel({ mtu: 1400, at });
        try {
          for (const ns of ['a', 'b'])
            run(ns, ['tc', 'qdisc', 'replace', 'dev', 'tun', 'root', 'netem', ...netem.split(' ')]);
        } catch (err) {
          if (/qdisc kind is unknown/.test(err.message))
            return 'this kernel has no netem';
          throw err;
        }
        ecn(netem.includes('ecn') ? 1 : 2);
        await transfer(address.b, undefined, 8);
        await transfer(address6.b, undefined, 8);
        ecn(2);
        assertNoDrops(...await end(both));
        assertIntact();
      });
    }
  }

  test('offload at one end: what the other one gets is ordinary packets', async () => {
    for (const plain of ['a', 'b']) {
      const mtu = 1400;
      const both = await tunnel({ mtu, at: { [plain === 'a' ? 'b' : 'a']: offload } });
      const file = `${work}/packets`;
      const dump = start(plain, ['tcpdump', '-i', 'tun', '-Q', 'in', '-B', '65536', '-Z', 'root', '-w', file]);
      await dump.next(/listening on/);
      for (const to of [address.b, address6.b]) {
        await transfer(to, undefined, 4);
        await segments(to, 1200);
      }
      await dump.kill('SIGINT');
      const text = await start('a', ['tcpdump', '-n', '-vv', '-r', file]).done();
      assert.doesNotMatch(text, /incorrect|bad (udp )?cksum/);
      assert(text.match(/\(correct\)/g).length > 2000);
      const lengths = (pattern, header) => [...text.matchAll(pattern)].map(({ 1: length }) => Number(length) + header);
      for (const all of [
        lengths(/proto (?:TCP|UDP).*? length (\d+)\)/g, 0),
        // The header of IPv6 is not in it.
        lengths(/next-header (?:TCP|UDP).*? payload length (\d+)\)/g, 40),
      ]) {
        assert(all.length > 1000, `${all.length}`);
        assert.strictEqual(all.reduce((a, b) => Math.max(a, b)), mtu);
      }
      assertNoDrops(...await end(both));
      assertIntact();
    }
  });

  test('offload: datagrams that are sent many at a time', async () => {
    for (const at of Object.values(ends)) {
      const both = await tunnel({ mtu: 1400, at });
      for (const to of [address.b, address6.b]) {
        for (const size of [8, 100, 1001, 1352])
          await segments(to, size);
      }
      const all = await end(both);
      if (at.a && kHasUso)
        assert(all[0].superPacketsOut >= 300, `${all[0].superPacketsOut}`);
      if (at.b && kHasUso)
        assert(all[1].superPacketsIn >= 300, `${all[1].superPacketsIn}`);
      assertNoDrops(...all);
      assertIntact();
    }
  });

  test('offload: a header of another length, and in another byte order', async () => {
    let missing;
    for (const { 0: length, 1: order } of [[12, 'native'], [10, 'le'], [12, 'be']]) {
      const by = ['python3', `${__dirname}/vnet.py`, `${length}`, order];
      const check = start('a', [kExec, '--offload', ...by, 'echo', 'can']);
      if (/^cannot/m.test(await check.done())) {
        missing = `this kernel has no byte order ${order}`;
        continue;
      }
      const at = { a: { ...offload, by }, b: { ...offload, by } };
      const both = await tunnel({ at });
      await sweep(1500);
      await transfer();
      const all = await end(both);
      assertNoDrops(...all);
      assertSuper(at, all);
      assertIntact();
    }
    return missing;
  });

  test('offload: IPv4 and IPv6 at once, both ways', async () => {
    const both = await tunnel({ mtu: 1400, at: ends['both ends'] });
    const results = await Promise.all([
      iperf('-c', address.b, '-p', '5201', '-P', '4', '--bidir'),
      iperf('-c', address6.b, '-p', '5202', '-P', '4', '--bidir'),
      iperf('-c', address.b, '-p', '5203', '-u', '-b', '10M', '-l', '1200', '--bidir'),
      iperf('-c', address6.b, '-p', '5204', '-u', '-b', '10M', '-l', '1200', '--bidir'),
    ]);
    for (const { sum_received: received, sum } of results)
      assert((received ?? sum).bytes > 1e5);
    const all = await end(both);
    assertNoDrops(...all);
    assertSuper(ends['both ends'], all);
    assertIntact();
  });

  // The kernel makes packets of what was joined again, since the other device has no offloads.
  test('offload: what a router behind the tunnel sends on is what has come', async () => {
    const listener = endpoint('b', 'listen', offload);
    await listener.next(/^listening/);
    const device = start('b', [kExec, '--name', 'plain', 'python3', `${__dirname}/capture.py`]);
    await device.next(/^ready/);
    run('b', ['sh', '-ec', `${forward}
      ip link set plain txqueuelen 100000 up
      ip route add 198.51.100.0/24 dev plain
      ip route add fd01::/64 dev plain`]);
    const packets = makePackets(3000);
    fs.writeFileSync(`${work}/packets`, Buffer.concat(packets));
    const sender = start('a', [kNode, `${__dirname}/send.js`, '192.0.2.2', '4433', `${work}/packets`], env);
    const received = [];
    // The last one is alone in its flow, and written last.
    const last = forwarded(packets.at(-1));
    do {
      const packet = Buffer.from((await device.next(/^[0-9a-f]+$/))[0], 'hex');
      // The kernel has something to say, too.
      if (isFor(packet))
        received.push(packet);
    } while (!received.at(-1)?.equals(last));
    assert.deepStrictEqual(byFlow(received), byFlow(packets.map(forwarded)));
    const { packetsIn, dropsIn, superPacketsIn, superPacketsRefused } = await stats(listener);
    assert.strictEqual(packetsIn, packets.length);
    assert.strictEqual(dropsIn, 0);
    assert(superPacketsIn > 100, `${superPacketsIn}`);
    assert.strictEqual(superPacketsRefused, kHasUso ? 0 : 1);
    await sender.kill();
    await killAll();
  });

  test('offloads that change while there is traffic', async () => {
    const both = await tunnel({ mtu: 1400, at: ends['both ends'] });
    let isOver = false;
    const sending = transfer().finally(() => isOver = true);
    const set = async (...options) => {
      for (const ns of ['a', 'b'])
        await start(ns, ['ethtool', '-K', 'tun', ...options]).done();
    };
    // There is no segmentation without checksums.
    while (!isOver) {
      await set('tso', 'off');
      await set('tx', 'off');
      await set('tx', 'on');
      await set('tso', 'on');
    }
    await sending;
    const all = await end(both);
    assertNoDrops(...all);
    assertSuper(ends['both ends'], all);
    assertIntact();
  });

  test('offload: no offloads but the header', async () => {
    const both = await tunnel({ flags: ['--vnet-hdr'] });
    await sweep(1500);
    await transfer();
    const all = await end(both);
    assertNoDrops(...all);
    for (const { superPacketsIn, superPacketsOut } of all) {
      assert(superPacketsIn > 0);
      assert.strictEqual(superPacketsOut, 0);
    }
    assertIntact();
  });

  for (const code of [22, 5]) {
    test(`offload: a kernel refuses packets that are written as one, with errno ${code}`, async () => {
      const by = ['env', `LD_PRELOAD=${refuse}`, `REFUSE=${code}`];
      const both = await tunnel({ mtu: 1400, at: { a: offload, b: { ...offload, by } } });
      await transfer();
      const { superPacketsIn, superPacketsRefused } = await stats(both.b);
      assert.strictEqual(superPacketsIn, 0);
      assert.strictEqual(superPacketsRefused, 1);
      await segments(address.b, 1000);
      await segments(address6.b, 1000);
      const all = await end(both);
      assert.strictEqual(all[1].superPacketsIn, 0);
      assert.strictEqual(all[1].superPacketsRefused, 2);
      assert(all[0].superPacketsIn > 0);
      assertNoDrops(...all);
      assertIntact();
    });
  }

  test('offload: the link goes down and comes up again', async () => {
    const both = await tunnel({ at: ends['both ends'] });
    // Packets of a flow that goes on without an answer.
    const load = start('a', ['sh', '-c', `while :; do iperf3 -c ${address.b} -t 60 --connect-timeout 100; done`]);
    const server = start('b', ['iperf3', '-s', '--forceflush', '-i', '0.1']);
    await server.next(/bits\/sec/);
    const before = await stats(both.b);
    assert(before.superPacketsIn > 0);
    ip('b', 'link set tun down');
    for (let now = before; now.dropsEIO === before.dropsEIO;)
      now = await stats(both.b);
    configure('b');
    await Promise.all([load.kill(), server.kill()]);
    await ping('a', address.b, 1000);
    const middle = await stats(both.b);
    await transfer();
    const { 1: b } = await end(both);
    // Refused for another reason: joining goes on.
    assert.strictEqual(b.superPacketsRefused, 0);
    assert(b.superPacketsIn > middle.superPacketsIn);
    assert.strictEqual(b.dropsIn, b.dropsEIO);
  });

  test('offload: a router behind the tunnel has a smaller MTU', async () => {
    const both = await tunnel({ at: ends['both ends'] });
    // The host does not know of the narrow link, which is between 'b' and a router of its own.
    const router = await namespace();
    const host = await namespace();
    run('b', ['sh', '-ec', `${forward}
      ip link add narrow mtu 1280 type veth peer name narrow mtu 1280 netns ${router.pid}
      ip address add 198.51.100.1/24 dev narrow
      ip address add fd01::1/64 dev narrow nodad
      ip link set narrow up`]);
    run('a', [...router.enter, 'sh', '-ec', `${forward}
      ip address add 198.51.100.2/24 dev narrow
      ip address add fd01::2/64 dev narrow nodad
      ip link set narrow up
      ip link add wide type veth peer name wide netns ${host.pid}
      ip address add 203.0.113.1/24 dev wide
      ip address add fd02::1/64 dev wide nodad
      ip link set wide up
      ip route add default via 198.51.100.1
      ip route add default via fd01::1`]);
    run('a', [...host.enter, 'sh', '-ec', `
      ip address add 203.0.113.2/24 dev wide
      ip address add fd02::2/64 dev wide nodad
      ip link set wide up
      ip route add default via 203.0.113.1
      ip route add default via fd02::1`]);
    run('b', ['sh', '-ec', `
      ip route add 203.0.113.0/24 via 198.51.100.2
      ip route add fd02::/64 via fd01::2`]);
    run('a', ['sh', '-ec', `
      ip route add 203.0.113.0/24 via ${address.b}
      ip route add fd02::/64 via ${address6.b}`]);
    // A SYN that waits for the links to be up is sent twice, and the kernel counts the second answer as an error.
    for (const to of ['203.0.113.2', 'fd02::2'])
      await pingUntilAnswered('a', to);
    const before = counters('b');
    // Without DF each datagram is cut, and put together by the host. That is before 'a' knows of the narrow link.
    await segments('203.0.113.2', 1400, host.start, 'fragment');
    await transfer('203.0.113.2', host.start, 8);
    await transfer('fd02::2', host.start, 8);
    const after = counters('b');
    // 'a' sends first, and is told the MTU. From then on it asks for no longer packets either.
    for (const name of ['IcmpOutDestUnreachs', 'Icmp6OutPktTooBigs'])
      assert(after[name] > before[name], name);
    assert(after.IpFragCreates - before.IpFragCreates >= 1000);
    const all = await end(both);
    assertNoDrops(...all);
    assertSuper(ends['both ends'], all);
    assertIntact();
  });
};
