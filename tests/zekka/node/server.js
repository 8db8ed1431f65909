// The sample application as a Node.js service, of one version: that of package.json.
const http = require('http');
const { version } = require('./package.json');
const greet = require('greeter');

const answers = {
  '/api/health': () => ({ status: 'ok', version: `v${version}` }),
  '/api/version': () => ({
    version: `v${version}`,
    greeting: greet(process.env),
    pid: process.pid,
    host: require('os').hostname(),
    directory: __dirname,
  }),
};

const server = http.createServer((request, response) => {
  const answer = answers[request.url];
  response.writeHead(answer ? 200 : 404, { 'content-type': 'application/json' });
  response.end(JSON.stringify(answer ? answer() : { error: 'no such page' }));
});
server.listen(Number(process.env.PORT), '127.0.0.1', () => console.log(`v${version} listens`));

// Requests under way are answered first. pm2 sends SIGINT, others SIGTERM.
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.on(signal, () => {
    server.close(() => process.exit(0));
    server.closeIdleConnections();
  });
}
