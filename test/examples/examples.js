'use strict';

// usage: test/examples/run [WORD]: the tests with WORD in their name, or all

const assert = require('assert');
const { createHash, randomBytes } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const https = require('https');
const net = require('net');
const os = require('os');
const path = require('path');
const tls = require('tls');

const { ip, kRepo, killAll, run, start } = require('../tun/net');

const kNode = process.execPath;
const kSize = 8 << 20;
const work = fs.mkdtempSync(path.join(os.tmpdir(), 'examples-'));
// All names below are relative to it: the path of a Unix socket must not be long.
process.chdir(work);

const tests = [];
function test(name, body) {
  tests.push({ name, body });
}

// --- Programs -------------------------------------------------------------------------------------------------------

const examples = [];

// One of tools/examples, up; `address` is where it listens. Only the warnings about spliceTo(), and about the
// descriptor of a UDP socket, are expected of it.
const kExpected = ['ExperimentalWarning', 'DEP0112'].map((warning) => `--disable-warning=${warning}`);

async function example(name, ...args) {
  return exampleWith([], name, ...args);
}

async function exampleWith(flags, name, ...args) {
  const script = `${kRepo}/tools/examples/${name}.js`;
  const started = start('a', [kNode, ...kExpected, ...flags, script, ...args]);
  examples.push(started);
  [, started.address] = await started.next(/^listening on (.+)/);
  [started.port] = /\d*$/.exec(started.address);
  return started;
}

// To its end, whatever that is; it must not take one of the examples with it.
async function shell(script, ...args) {
  const child = start('a', ['sh', '-ec', script, 'sh', ...args]);
  const code = await child.exited;
  return { code, output: child.output };
}

// What an example says at the end of a connection. A server that closes one with
// something unread, a close_notify for instance, resets it.
const over = ({ source }) => new RegExp(`${source}|failed: (?:read ECONNRESET|write (?:EPIPE|ECONNRESET))$`);

// To its good end; the output.
async function ok(script, ...args) {
  const { code, output } = await shell(script, ...args);
  assert.strictEqual(code, 0, `${script} ${args}: ${code} ${output}`);
  return output;
}

function sha(bytes) {
  return createHash('sha256').update(bytes).digest('hex');
}

function shaOf(file) {
  return sha(fs.readFileSync(file));
}

// A CA for each side: who is to verify one of the two does not know the other.
function authority(name) {
  run('a', ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc', '-days', '2',
            '-keyout', `${name}.key`, '-out', `${name}.pem`, '-subj', `/CN=${name}`,
            '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign']);
}

function certificate(ca, folder, name, alternatives = `DNS:${name}`) {
  fs.mkdirSync(folder, { recursive: true });
  run('a', ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc', '-days', '2',
            '-keyout', `${folder}/${name}.key`, '-out', `${folder}/${name}.pem`, '-subj', `/CN=${name}`,
            '-CA', `${ca}.pem`, '-CAkey', `${ca}.key`,
            '-addext', `subjectAltName=${alternatives}`, '-addext', 'basicConstraints=critical,CA:FALSE']);
}

const kOwn = ['--port', '0', '--key', 'front/localhost.key', '--cert', 'front/localhost.pem'];

// It says so once it listens; so does Redis.
async function nginx(name, servers) {
  fs.mkdirSync(`${name}/up`, { recursive: true });
  fs.writeFileSync(`${name}/name`, name);
  fs.writeFileSync(`${name}/nginx.conf`, `
    daemon off;
    master_process off;
    pid nginx.pid;
    error_log stderr notice;
    events {}
    http {
      access_log off;
      client_max_body_size 0;
      client_body_temp_path up;
      proxy_temp_path up;
      fastcgi_temp_path up;
      uwsgi_temp_path up;
      scgi_temp_path up;
      ssl_certificate ${work}/back/${name}.pem;
      ssl_certificate_key ${work}/back/${name}.key;
      root ${work};
      ${servers.map((listen) => `server {
        listen 127.0.0.1:${listen};
        location = /name { root ${work}/${name}; }
        location /up/ { root ${work}/${name}; dav_methods PUT; }
      }`).join('\n')}
    }`);
  const child = start('a', ['nginx', '-p', `${work}/${name}`, '-c', `${work}/${name}/nginx.conf`, '-e', 'stderr']);
  await child.next(/using the "epoll" event method/);
  return child;
}

async function redis() {
  const child = start('a', ['redis-server', '--port', '6379', '--bind', '127.0.0.1', '--unixsocket', 'redis.sock',
                            '--save', '']);
  await child.next(/Ready to accept connections unix/);
  return child;
}

// --- Redis ----------------------------------------------------------------------------------------------------------

const kKeys = 10000;

// Data of its own to the server and back, as large values, as a pipeline, and one after the other. `cli` is how
// redis-cli gets there.
async function useRedis(cli) {
  fs.writeFileSync('value', randomBytes(1 << 20));
  await ok(`${cli} -x set value <value`);
  await ok(`${cli} --raw get value | head -c -1 >got`);
  assert.strictEqual(shaOf('got'), shaOf('value'));
  // Not only to those who have sent it.
  await ok('redis-cli -s redis.sock --raw get value | head -c -1 >got');
  assert.strictEqual(shaOf('got'), shaOf('value'));

  const values = Array.from({ length: kKeys }, (_, i) => randomBytes(i % 100).toString('hex'));
  fs.writeFileSync('pipeline', values.map((value, i) => `SET key${i} "${value}"\r\n`).join(''));
  assert.match(await ok(`${cli} --pipe <pipeline`), new RegExp(`errors: 0, replies: ${kKeys}$`, 'm'));
  fs.writeFileSync('commands', values.map((_, i) => `GET key${i}\n`).join(''));
  await ok(`${cli} --raw <commands >got`);
  assert.strictEqual(shaOf('got'), sha(values.map((value) => `${value}\n`).join('')));
  await ok(`${cli} flushall`);
}

const viaTLS = (port) => `redis-cli --tls --cacert front.pem --sni localhost -h 127.0.0.1 -p ${port}`;

test('tls-terminator: redis-cli --tls to Redis on a TCP port', async () => {
  await redis();
  const terminator = await example('tls-terminator', ...kOwn, '--tcp', '127.0.0.1:6379');
  await useRedis(viaTLS(terminator.port));
  await terminator.next(over(/ sent [1-9]\d{6,} bytes and got \d+$/));
});

test('tls-terminator: redis-cli --tls to Redis on a Unix socket', async () => {
  await redis();
  const terminator = await example('tls-terminator', ...kOwn, '--unix', 'redis.sock');
  await useRedis(viaTLS(terminator.port));
});

test('tls-terminator: a server that comes and goes', async () => {
  const terminator = await example('tls-terminator', ...kOwn, '--tcp', '6379');
  const ping = `${viaTLS(terminator.port)} ping`;
  assert.notStrictEqual((await shell(ping)).code, 0);
  await terminator.next(/failed: connect ECONNREFUSED|failed: $/);
  const server = await redis();
  assert.strictEqual(await ok(ping), 'PONG\n');
  // A client that is waiting for an answer when the server dies.
  const waiting = shell(`${viaTLS(terminator.port)} blpop nothing 0`);
  await ok('until redis-cli -s redis.sock client list | grep -q cmd=blpop; do :; done');
  await server.kill();
  assert.match((await waiting).output, /Server closed the connection|Connection reset/);
  await redis();
  assert.strictEqual(await ok(ping), 'PONG\n');
});

// What each Worker has done, once all connections are over and counted.
async function doneByWorkers(pool, count) {
  for (;;) {
    pool.child.kill('SIGUSR2');
    const lines = [];
    for (let i = 0; i < count; i++)
      lines.push(await pool.next(/^worker \d: (\d+) connections open, (\d+) done, (\d+) bytes in, (\d+) bytes out$/));
    if (lines.every(({ 1: open }) => open === '0'))
      return lines.map(({ 2: done, 3: bytesIn, 4: bytesOut }) => [done, bytesIn, bytesOut].map(Number));
  }
}

test('worker-pool: redis-cli --tls to Redis, on a TCP port and on a Unix socket', async () => {
  await redis();
  for (const target of [['--tcp', '127.0.0.1:6379'], ['--unix', 'redis.sock']]) {
    const pool = await example('worker-pool', ...kOwn, '--workers', '2', ...target);
    // While one Worker has this connection, the next one goes to the other Worker.
    const subscriber = start('a', [...viaTLS(pool.port).split(' '), 'subscribe', 'channel']);
    await subscriber.next(/^1$/);
    await useRedis(viaTLS(pool.port));
    await subscriber.kill();
    const done = await doneByWorkers(pool, 2);
    assert.strictEqual(done[0][0] + done[1][0], 6);
    assert(done.flat().every((number) => number > 0), `${done}`);
  }
});

test('worker-pool: curl to nginx', async () => {
  await nginx('a.example', ['8080']);
  const pool = await example('worker-pool', ...kOwn, '--workers', '3', '--tcp', '8080');
  const url = `https://localhost:${pool.port}`;
  await useNginx('a.example', url, '--cacert front.pem');
  await vanish(url, '--cacert front.pem', '8080');
  await useNginx('a.example', url, '--cacert front.pem');
});

test('tls-tunnel: redis-cli without TLS, through tls-terminator, to Redis', async () => {
  await redis();
  const { port } = await example('tls-terminator', ...kOwn, '--tcp', '127.0.0.1:6379');
  const tunnel = await example('tls-tunnel', '--port', '0', '--connect', `localhost:${port}`, '--ca', 'front.pem');
  await useRedis(`redis-cli -p ${tunnel.port}`);
  await tunnel.next(/is over \((?:end|error)\), sent [1-9]\d{6,} bytes and got \d+$/);
  await example('tls-tunnel', '--unix', 'tunnel.sock', '--connect', `127.0.0.1:${port}`, '--ca', 'front.pem');
  await useRedis('redis-cli -s tunnel.sock');
});

test('tls-tunnel: a server that is not there, or not the right one', async () => {
  await nginx('a.example', ['8080']);
  const { port } = await example('tls-terminator', ...kOwn, '--tcp', '127.0.0.1:8080');
  for (const [reason, ...args] of [
    [/unable to verify the first certificate/, '--connect', `localhost:${port}`, '--ca', 'back.pem'],
    [/unable to verify the first certificate/, '--connect', `localhost:${port}`],
    [/does not match certificate's altnames/,
     '--connect', `localhost:${port}`, '--ca', 'front.pem', '--servername', 'a.example'],
    [/ECONNREFUSED|connection 1 failed: $/, '--connect', 'localhost:9', '--ca', 'front.pem'],
    [/ENOTFOUND|EAI_AGAIN/, '--connect', 'nobody.invalid:9', '--ca', 'front.pem'],
    // It does not speak TLS.
    [/wrong version number|packet length too long/, '--connect', 'localhost:8080', '--ca', 'front.pem'],
  ]) {
    const tunnel = await example('tls-tunnel', '--port', '0', ...args);
    assert.notStrictEqual((await shell(`redis-cli -p ${tunnel.port} ping`)).code, 0);
    const { 0: line } = await tunnel.next(/^connection 1 failed.*/);
    assert.match(line, reason);
    await tunnel.next(/^connection 1 is over \((error|destroyed)\), sent 0 bytes and got 0$/);
    assert.strictEqual((await shell(`redis-cli -p ${tunnel.port} ping`)).code, 1);
    await tunnel.next(/^connection 2 is over/);
  }
});

// --- HTTP -----------------------------------------------------------------------------------------------------------

// Down and up, checked by checksum. `to` is the nginx, `url` how curl asks for it, `curl` what it is told besides.
async function useNginx(to, url, curl) {
  assert.strictEqual(await ok(`curl -fsS ${curl} ${url}/name`), to);
  await ok(`curl -fsS ${curl} -o got ${url}/random`);
  assert.strictEqual(shaOf('got'), shaOf('random'));
  const name = `up/${randomBytes(8).toString('hex')}`;
  await ok(`curl -fsS ${curl} -T random ${url}/${name}`);
  assert.strictEqual(shaOf(`${to}/${name}`), shaOf('random'));
  // Several at a time, each with a connection of its own.
  const all = Array.from({ length: 8 }, (_, i) => ok(`curl -fsS ${curl} -o got${i} ${url}/random`));
  await Promise.all(all);
  all.forEach((_, i) => assert.strictEqual(shaOf(`got${i}`), shaOf('random')));
}

// A client that goes away in the middle of a download: nothing of it stays behind. `port` is the nginx's.
async function vanish(url, curl, port) {
  const child = start('a', ['curl', '-sSN', '--limit-rate', '1k', ...curl.split(' '), `${url}/random`]);
  await child.next(/^/);
  await child.kill();
  await ok(`
    connected() { ss -Htn state connected exclude time-wait "( dport = :$1 or sport = :$1 )"; }
    for i in $(seq 2000); do
      left=$(connected "$1")
      [ "$left" ] || exit 0
    done
    echo "$left"
    exit 1`, port);
}

test('sni-proxy: curl to two nginx, by name', async () => {
  await nginx('a.example', ['8081 ssl']);
  const b = await nginx('b.example', ['8082 ssl']);
  const proxy = await example('sni-proxy', '--port', '0', '--certs', 'front', '--ca', 'back.pem',
                              'a.example=127.0.0.1:8081', 'b.example=localhost:8082',
                              'c.example=127.0.0.1:8083', 'd.example=127.0.0.1:8082');
  const curl = (name) => `--cacert front.pem --resolve ${name}:${proxy.port}:127.0.0.1`;
  const url = (name) => `https://${name}:${proxy.port}`;
  for (const name of ['a.example', 'b.example']) {
    await useNginx(name, url(name), curl(name));
    await proxy.next(over(new RegExp(` ${name} sent [1-9]\\d{6,} bytes and got \\d+$`)));
    await vanish(url(name), curl(name), name === 'a.example' ? '8081' : '8082');
  }
  for (const [name, reason] of [
    // Nobody listens there.
    ['c.example', /c\.example failed: .*ECONNREFUSED/],
    // That one has a certificate for b.example.
    ['d.example', /d\.example failed: .*does not match certificate's altnames/],
    ['e.example', /refused: .*no suitable signature algorithm|refused: .*no shared cipher/],
  ]) {
    const result = await shell(`curl -sS ${curl(name)} ${url(name)}/name`);
    assert.notStrictEqual(result.code, 0, `${name}: ${result.output}`);
    await proxy.next(reason);
  }
  // Without a name.
  assert.strictEqual((await shell(`curl -sSk https://127.0.0.1:${proxy.port}/name`)).code, 35);
  await proxy.next(/refused: /);
  // One that has been there.
  await b.kill();
  assert.notStrictEqual((await shell(`curl -sS ${curl('b.example')} ${url('b.example')}/name`)).code, 0);
  await proxy.next(/b\.example failed: .*ECONNREFUSED|b\.example failed: $/);
  assert.strictEqual(await ok(`curl -fsS ${curl('a.example')} ${url('a.example')}/name`), 'a.example');
});

test('https-proxy: curl to nginx, by HTTP and by HTTPS', async () => {
  await nginx('a.example', ['8080', '8081 ssl']);
  const proxy = await example('https-proxy', ...kOwn, '--allow', '8080', '--allow', '8081', '--allow', '8083');
  const curl = `--proxy https://localhost:${proxy.port} --proxy-cacert front.pem -p`;
  await useNginx('a.example', 'http://127.0.0.1:8080', curl);
  await proxy.next(over(/^127\.0\.0\.1:8080 got [1-9]\d{6,} bytes and sent \d+$/));
  await vanish('http://127.0.0.1:8080', curl, '8080');
  const secure = `${curl} --connect-to a.example:8081:localhost:8081 --cacert back.pem`;
  await useNginx('a.example', 'https://a.example:8081', secure);
  await proxy.next(over(/^localhost:8081 got [1-9]\d{6,} bytes and sent \d+$/));
  await vanish('https://a.example:8081', secure, '8081');

  const connectCode = async (url) => (await shell(`curl -sS -o /dev/null -w '%{http_connect}' ${curl} ${url}`)).output;
  assert.match(await connectCode('http://127.0.0.1:8083'), /502/);
  assert.match(await connectCode('http://nobody.invalid:8083'), /502/);
  assert.match(await connectCode('http://[::1]:8083'), /502/);
  assert.match(await connectCode('http://127.0.0.1:8084'), /403/);
  const code = await ok(`curl -sS -o /dev/null -w '%{http_code}' --cacert front.pem https://localhost:${proxy.port}`);
  assert.strictEqual(code, '405');
});

// --- WebSocket ------------------------------------------------------------------------------------------------------

const kHere = `${kRepo}/test/examples`;

test('websocket-proxy: clients of Python and of Node, to a server of Python', async () => {
  const server = start('a', ['python3', `${kHere}/websocket-server.py`, '8090']);
  await server.next(/^listening/);
  const proxy = await example('websocket-proxy', ...kOwn, '--connect', '127.0.0.1:8090');
  const url = `wss://localhost:${proxy.port}`;
  const clients = [
    (path) => ok('exec python3 "$@"', `${kHere}/websocket-client.py`, url + path, 'front.pem'),
    (path) => ok('NODE_EXTRA_CA_CERTS=front.pem exec "$@"', kNode, `${kHere}/websocket-client.js`, url + path),
  ];
  for (const client of clients) {
    assert.strictEqual(await client('/some?thing'), 'closed 4002 done\n');
    // The handshake has come through as it was.
    await server.next(new RegExp(`^/some\\?thing localhost:${proxy.port} closed 4002 done$`));
    await proxy.next(over(/ \/some\?thing sent [1-9]\d{6,} bytes and got [1-9]\d{6,}$/));
  }
  // Several at a time.
  await Promise.all([...clients, ...clients].map((client) => client('/')));
  assert.strictEqual(await clients[1]('/bye'), 'closed 4001 bye\n');
  await server.next(/^\/bye localhost:\d+ closed 4001 $/);
});

test('websocket-proxy: what it does not pass on', async () => {
  const proxy = await example('websocket-proxy', ...kOwn, '--connect', '127.0.0.1:8090');
  const code = (...headers) => ok(`exec curl -sS --http1.1 -o /dev/null -w '%{http_code}' --cacert front.pem "$@"`,
                                  `https://localhost:${proxy.port}`, ...headers.flatMap((header) => ['-H', header]));
  assert.strictEqual(await code(), '426');
  assert.strictEqual(await code('Connection: Upgrade', 'Upgrade: h2c'), '426');
  // Nobody listens there.
  assert.strictEqual(await code('Connection: Upgrade', 'Upgrade: websocket'), '502');
  await proxy.next(/ \/ failed: connect ECONNREFUSED 127\.0\.0\.1:8090$/);
});

// --- DNS ------------------------------------------------------------------------------------------------------------

const kText = 'x'.repeat(250);

// A server of plain DNS, which says so once it listens.
async function dnsmasq() {
  const child = start('a', [
    'dnsmasq', '--keep-in-foreground', '--log-facility=-', '--conf-file=/dev/null', '--pid-file=', '--user=root',
    '--port=5353', '--listen-address=127.0.0.1', '--bind-interfaces', '--no-resolv', '--no-hosts',
    '--edns-packet-max=4096', '--host-record=a.example,192.0.2.7,2001:db8::7',
    ...Array.from({ length: 8 }, (_, i) => `--txt-record=long.example,${i}${kText}`),
  ]);
  await child.next(/started, version/);
  return child;
}

const kDNS = ['--dns', '127.0.0.1:5353'];
// The name of the server is verified, too.
const kdig = (port, ...args) => ok('exec kdig "$@"', '@127.0.0.1', '-p', port, '+tls', '+tls-ca=front.pem',
                                   '+tls-hostname=localhost', '+retry=0', ...args);

test('dns-over-tls: kdig to dnsmasq', async () => {
  await dnsmasq();
  const front = await example('dns-over-tls', ...kOwn, ...kDNS);
  const { port } = front;
  assert.strictEqual(await kdig(port, '+short', 'a.example'), '192.0.2.7\n');
  // One after the other on one connection.
  const names = Array.from({ length: 20 }, () => ['a.example', 'AAAA']).flat();
  assert.strictEqual(await kdig(port, '+keepopen', '+short', ...names), '2001:db8::7\n'.repeat(20));
  // More than 2,000 bytes, from UDP.
  const long = await kdig(port, '+bufsize=4096', '+short', 'long.example', 'TXT');
  assert.deepStrictEqual(long.split('\n').sort(), ['', ...Array.from({ length: 8 }, (_, i) => `"${i}${kText}"`)]);
  assert.match(await kdig(port, '+bufsize=512', '+ignore', 'long.example', 'TXT'), /Flags:[^;]* tc[ ;]/);
  // Many at a time.
  await Promise.all(Array.from({ length: 20 }, async () => {
    assert.strictEqual(await kdig(port, '+short', 'a.example'), '192.0.2.7\n');
  }));
  await front.next(over(/ sent 20 queries and got 20 answers, 0 queries were refused$/));
});

test('dns-over-tls: dnsperf to dnsmasq', async () => {
  const server = await dnsmasq();
  const { port } = await example('dns-over-tls', ...kOwn, ...kDNS);
  fs.writeFileSync('queries', 'a.example A\na.example AAAA\nlong.example TXT\nnone.example A\n');
  const output = await ok('exec dnsperf "$@"', '-m', 'dot', '-s', '127.0.0.1', '-p', port, '-d', 'queries',
                          '-n', '5000', '-c', '10', '-e', '-b', '1024');
  assert.match(output, /Queries sent: +20000$/m);
  assert.match(output, /Queries completed: +20000 \(100\.00%\)$/m);
  assert.match(output, /Queries lost: +0 /m);
  await server.kill();
});

// A query for the IPv4 address of a.example, and a part of the answer.
const kQuery = Buffer.from('001b1234010000010000000000000161076578616d706c650000010001', 'hex');
const kAnswer = Buffer.from('c0000207', 'hex');

test('dns-over-tls: a client that keeps its connection until it times out', async () => {
  await dnsmasq();
  // The timeout of the example expires at SIGALRM.
  fs.writeFileSync('timeouts.js', `
    const { Socket } = require('net');
    Socket.prototype.setTimeout = function(msecs, callback) {
      if (msecs === 30_000)
        process.once('SIGALRM', callback);
      return this;
    };`);
  const front = await exampleWith(['--require', './timeouts.js'], 'dns-over-tls', ...kOwn, ...kDNS);
  const client = tls.connect({ port: front.port, host: '127.0.0.1', ca: fs.readFileSync('front.pem'),
                               servername: 'localhost', allowHalfOpen: true });
  client.write(kQuery);
  let got = Buffer.alloc(0);
  while (!got.includes(kAnswer))
    got = Buffer.concat([got, (await once(client, 'data'))[0]]);
  front.child.kill('SIGALRM');
  await once(client, 'end');
  client.destroy();
  await front.next(/ sent 1 queries and got 1 answers, 0 queries were refused$/);
  assert.doesNotMatch(front.output, /failed/);
});

test('dns-over-tls: a server that comes and goes', async () => {
  const front = await example('dns-over-tls', ...kOwn, ...kDNS);
  const { port } = front;
  const inVain = `kdig @127.0.0.1 -p ${port} +tls +retry=0 +timeout=1 a.example`;
  assert.notStrictEqual((await shell(inVain)).code, 0);
  await front.next(over(/ sent 1 queries and got 0 answers, 1 queries were refused$/));
  const server = await dnsmasq();
  assert.strictEqual(await kdig(port, '+short', 'a.example'), '192.0.2.7\n');
  await server.kill();
  assert.notStrictEqual((await shell(inVain)).code, 0);
  await dnsmasq();
  assert.strictEqual(await kdig(port, '+short', 'a.example'), '192.0.2.7\n');
});

// --- undici ---------------------------------------------------------------------------------------------------------

// The sockets that a Client hands over after an Upgrade and a CONNECT. What the server has sent with its answer has
// been unshifted by undici.
test('undici: the sockets of upgrade() and connect()', async () => {
  const { Client } = require('/usr/share/nodejs/undici');
  for (const [event, answer, request] of [
    ['upgrade', '101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo',
     (client) => client.upgrade({ path: '/', protocol: 'echo' })],
    ['connect', '200 Connection established', (client) => client.connect({ path: 'example.com:443' })],
  ]) {
    const server = https.createServer({
      key: fs.readFileSync('front/localhost.key'), cert: fs.readFileSync('front/localhost.pem'), allowHalfOpen: true,
    });
    server.on(event, (_, socket) => {
      socket.write(`HTTP/1.1 ${answer}\r\n\r\nearly `);
      socket.pipe(socket);
    });
    server.listen(0);
    await once(server, 'listening');
    const { port } = server.address();
    const client = new Client(`https://localhost:${port}`, { connect: { ca: fs.readFileSync('front.pem') } });
    const { socket } = await request(client);
    const listener = net.createServer({ allowHalfOpen: true }).listen(0);
    await once(listener, 'listening');
    const accepted = once(listener, 'connection');
    const endpoint = net.connect({ port: listener.address().port, allowHalfOpen: true });
    const done = socket.pipeToNative(endpoint);
    const [far] = await accepted;
    far.end(fs.readFileSync('random'));
    const received = Buffer.concat(await far.toArray());
    assert.strictEqual(`${received.subarray(0, 6)}`, 'early ');
    assert.strictEqual(sha(received.subarray(6)), shaOf('random'));
    const { reason, bytesIn, bytesOut } = await done;
    assert.deepStrictEqual([reason, bytesIn, bytesOut], ['end', kSize + 6, kSize]);
    await client.close();
    listener.close();
    server.close();
  }
});

// --- All of them ----------------------------------------------------------------------------------------------------

test('the examples say how they are used', async () => {
  for (const name of ['sni-proxy', 'tls-tunnel', 'websocket-proxy']) {
    const started = start('a', [kNode, `${kRepo}/tools/examples/${name}.js`]);
    assert.strictEqual(await started.exited, 2, started.output);
    assert.match(started.output, new RegExp(`^usage: node ${name}\\.js .*\\n$`));
  }
});

async function main() {
  ip('a', 'link set lo up');
  fs.writeFileSync('random', randomBytes(kSize));
  authority('front');
  authority('back');
  certificate('front', 'front', 'localhost', 'DNS:localhost,IP:127.0.0.1');
  for (const name of ['a.example', 'b.example', 'c.example', 'd.example'])
    certificate('front', 'front', name);
  for (const name of ['a.example', 'b.example'])
    certificate('back', 'back', name);
  const word = process.argv[2] ?? '';
  let passed = 0;
  let failed = 0;
  for (const { name, body } of tests) {
    if (!name.includes(word))
      continue;
    const begin = process.hrtime.bigint();
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
    examples.length = 0;
    await killAll();
  }
  process.chdir('/');
  fs.rmSync(work, { recursive: true });
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}
main();
