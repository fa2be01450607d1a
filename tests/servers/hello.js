// An HTTP server that tells whom it sees. node hello.js PORT [NAME]
const [port, name = "node"] = process.argv.slice(2);
const server = require("http").createServer((request, response) => {
  const { remoteAddress, remotePort } = request.socket;
  response.setHeader("content-type", "text/plain");
  response.end(`hello from ${name} to ${remoteAddress} port ${remotePort}\n`);
});
server.listen(Number(port), "::", () => console.log("listening"));
