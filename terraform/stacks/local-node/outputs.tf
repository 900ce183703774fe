output "nodes" {
  description = "The nodes of the attempt; here always one."
  value = [{
    id       = terraform_data.node.id
    node_dir = terraform_data.node.output.agent.node_dir
    platform = "local"
  }]
}
