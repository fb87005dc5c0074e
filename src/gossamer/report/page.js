for (const data of document.querySelectorAll("script[data-chart]")) {
  const figure = JSON.parse(data.textContent);
  Plotly.newPlot(data.dataset.chart, figure.data, figure.layout, { displayModeBar: false, responsive: true });
}
