// Classifies a photo with an exported model: node classify.mjs exported cat.jpg
import fs from "node:fs";
import ort from "onnxruntime-node";
import sharp from "sharp";

const [folder, file] = process.argv.slice(2);
const names = JSON.parse(fs.readFileSync(`${folder}/export.json`)).classes;
const session = await ort.InferenceSession.create(`${folder}/classifier.onnx`);
const photo = sharp(file).rotate().flatten({ background: "white" }).toColorspace("srgb").removeAlpha().raw();
const { data, info } = await photo.toBuffer({ resolveWithObject: true });
const images = new ort.Tensor("uint8", new Uint8Array(data), [1, info.height, info.width, 3]);
const { probabilities } = await session.run({ images });
const ranked = Array.from(probabilities.data, (p, i) => [p, names[i]]).sort((a, b) => b[0] - a[0]);
for (const [p, name] of ranked.slice(0, 3)) console.log(`${name}: ${p.toFixed(4)}`);
