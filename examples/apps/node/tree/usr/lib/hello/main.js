// Says hello to whoever asks.
const { createServer } = require("node:http");

createServer((_request, answer) => {
    answer.setHeader("Content-Type", "text/plain");
    answer.end("Hello from Node.js\n");
}).listen(3000, "0.0.0.0");
